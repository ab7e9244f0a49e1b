"""A Flask application, as a module's variable and as a factory:

    rgunicorn flask_app:app
    rgunicorn "flask_app:create_app('shop', debug=True)"
"""

from flask import Flask, Response, jsonify, request


def create_app(name, debug=False):
    app = Flask(__name__)
    app.config["NAME"] = name
    app.debug = debug

    @app.get("/")
    def index():
        return f"Hello from {name}!\n"

    @app.post("/echo")
    def echo():
        return jsonify(form=request.form.to_dict(), args=request.args.to_dict())

    @app.post("/length")
    def length():
        """Reads the body piece by piece, without keeping it."""
        total = 0
        while piece := request.stream.read(64 * 1024):
            total += len(piece)
        return jsonify(length=total)

    @app.get("/stream")
    def stream():
        count = request.args.get("lines", default=10, type=int)
        lines = (f"line {number}\n" for number in range(1, count + 1))
        return Response(lines, mimetype="text/plain")

    return app


app = create_app("Flask")
