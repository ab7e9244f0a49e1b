"""The errors of gunicorn's parser, as names to import and to catch. Nothing here raises them: bad requests never reach Python."""


class ParseException(Exception):
    """A request that cannot be read."""


class NoMoreData(IOError):
    """The client has gone."""


class ConfigurationProblem(ParseException):
    pass


class InvalidRequestLine(ParseException):
    pass


class InvalidRequestMethod(ParseException):
    pass


class ExpectationFailed(ParseException):
    pass


class InvalidHTTPVersion(ParseException):
    pass


class InvalidHeader(ParseException):
    pass


class ObsoleteFolding(ParseException):
    pass


class InvalidHeaderName(ParseException):
    pass


class UnsupportedTransferCoding(ParseException):
    pass


class InvalidChunkSize(IOError):
    pass


class ChunkMissingTerminator(IOError):
    pass


class LimitRequestLine(ParseException):
    pass


class LimitRequestHeaders(ParseException):
    pass


class InvalidProxyLine(ParseException):
    pass


class InvalidProxyHeader(ParseException):
    pass


class ForbiddenProxyRequest(ParseException):
    pass


class InvalidSchemeHeaders(ParseException):
    pass
