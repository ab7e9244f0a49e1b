"""A Flask application with a bit of everything that touches the server."""
import hashlib
import os
import time

from flask import Flask, Response, abort, jsonify, request, send_file, session, stream_with_context, url_for


def create_app(name="default"):
    app = Flask("flasksite")
    app.secret_key = "for the tests only"
    app.config["NAME"] = name

    @app.route("/")
    def index():
        return "hello from " + app.config["NAME"]

    @app.route("/where/<path:rest>", methods=["GET", "POST"])
    def where(rest):
        return jsonify(rest=rest, url=request.url, external=url_for("index", _external=True), args=request.args.to_dict(),
                       peer=request.remote_addr, script=request.script_root)

    @app.route("/count")
    def count():
        session["count"] = session.get("count", 0) + 1
        return str(session["count"])

    @app.route("/form", methods=["POST"])
    def form():
        file = request.files["file"]
        data = file.read()
        return jsonify(text=request.form["text"], name=file.filename, size=len(data), sha256=hashlib.sha256(data).hexdigest())

    @app.route("/json", methods=["POST", "PUT", "PATCH", "DELETE"])
    def json():
        return jsonify(request.get_json(), request.method)

    @app.route("/raw", methods=["POST"])
    def raw():
        return str(len(request.get_data()))

    @app.route("/stream")
    def stream():
        def lines():
            for n in range(int(request.args["lines"])):
                yield "line %d\n" % n
                gate = request.args.get("gate")
                deadline = time.monotonic() + 20
                while gate and not os.path.exists("%s%d" % (gate, n)) and time.monotonic() < deadline:
                    time.sleep(0.005)
        return Response(stream_with_context(lines()), mimetype="text/plain")

    @app.route("/file")
    def file():
        return send_file(os.path.abspath("file.bin"), conditional=True)

    @app.route("/missing")
    def missing():
        abort(404)

    @app.route("/raise")
    def raising():
        raise ValueError("on purpose")

    @app.route("/empty")
    def empty():
        return "", 204

    @app.after_request
    def mark(response):
        response.headers["X-After"] = "yes"
        return response

    return app


app = create_app()
