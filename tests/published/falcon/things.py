import falcon


class ThingsResource:
    def on_get(self, req, resp):
        resp.text = "Two things awe me most"

    def on_post(self, req, resp):
        resp.media = {"seen": req.media}
        resp.status = falcon.HTTP_201


app = falcon.App()
app.add_route("/things", ThingsResource())
