"""What the hook `ssl_context` makes of OpenSSL's context, in terms that the server's own TLS can keep."""

from __future__ import annotations

import ssl
from typing import Any, Callable, Dict, List, Optional, Tuple


class Unusable(Exception):
    """The predicate of a sentence about the hook."""


class Context(ssl.SSLContext):
    """A context that remembers what cannot be read from one."""

    chain: Optional[Tuple[Any, Any]] = None
    protocols: Optional[List[str]] = None

    def load_cert_chain(self, certfile: Any, keyfile: Any = None, password: Any = None) -> None:
        super().load_cert_chain(certfile, keyfile, _encrypted)
        self.chain = (certfile, keyfile)

    def load_verify_locations(self, cafile: Any = None, capath: Any = None, cadata: Any = None) -> None:
        if capath is not None:
            raise Unusable("authorities in a folder (capath) are read by OpenSSL only; name a file")
        super().load_verify_locations(cafile, None, cadata)

    def load_default_certs(self, purpose: Any = ssl.Purpose.SERVER_AUTH) -> None:
        raise Unusable("the system's authorities (load_default_certs) are read by OpenSSL only; name a file")

    set_default_verify_paths = load_default_certs  # type: ignore[assignment]

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        super().set_alpn_protocols(alpn_protocols)
        if "http/1.1" not in alpn_protocols:
            raise Unusable("http/1.1 is what is spoken, and is not among its ALPN protocols")

    def set_ecdh_curve(self, name: Any) -> None:
        raise Unusable("set_ecdh_curve cannot be honoured: the curves are X25519, P-256 and P-384")

    def set_servername_callback(self, server_name_callback: Any) -> None:
        raise Unusable("certificates by server name (set_servername_callback) cannot be honoured")

    def set_npn_protocols(self, npn_protocols: Any) -> None:
        raise Unusable("NPN is not spoken")

    def set_psk_server_callback(self, callback: Any, identity_hint: Any = None) -> None:
        raise Unusable("pre-shared keys cannot be honoured")


def _encrypted() -> str:
    raise Unusable("its key is encrypted; decrypt it, as OpenSSL does not give it away")


def made(cfg: Any) -> Context:
    """The context that the settings describe, as gunicorn makes it."""
    context = Context(ssl.PROTOCOL_TLS_SERVER)
    if cfg.ca_certs:
        context.load_verify_locations(cafile=cfg.ca_certs)
    context.load_cert_chain(certfile=cfg.certfile, keyfile=cfg.keyfile)
    context.verify_mode = ssl.VerifyMode(cfg.cert_reqs)
    if cfg.ciphers:
        context.set_ciphers(cfg.ciphers)
    return context


def asked(hook: Callable[[Any, Callable[[], ssl.SSLContext]], Any], cfg: Any, known: List[str]) -> Dict[str, Any]:
    """Calls the hook and reads what it gives; `known` are the cipher suites that there are, by OpenSSL's names.

    Raises Unusable for what cannot be taken over, and whatever the hook raises.
    """
    context = hook(cfg, lambda: made(cfg))
    if not isinstance(context, Context):
        raise Unusable(
            "it gave %s; what is in a context that default_factory() has not made, its certificate for one, "
            "OpenSSL does not show: change the one that default_factory() gives, and return that" % _shown(context)
        )
    assert context.chain is not None
    plain = Context(ssl.PROTOCOL_TLS_SERVER)
    _refuse(context, plain)
    names = [suite["name"] for suite in context.get_ciphers()]
    usual = [suite["name"] for suite in plain.get_ciphers()]
    certfile, keyfile = context.chain
    common = [name for name in names if name in known]
    tls12 = _speaks(context, ssl.TLSVersion.TLSv1_2, ssl.OP_NO_TLSv1_2) and any(not _is_13(name) for name in common)
    tls13 = _speaks(context, ssl.TLSVersion.TLSv1_3, ssl.OP_NO_TLSv1_3) and any(_is_13(name) for name in common)
    if not tls12 and not tls13:
        raise Unusable("neither TLS 1.2 nor 1.3 is left to speak, with a cipher suite among: %s" % ", ".join(known))
    return {
        "certfile": str(certfile),
        "keyfile": None if keyfile is None else str(keyfile),
        "client": int(context.verify_mode),
        "authorities": context.get_ca_certs(binary_form=True),
        # Those of OpenSSL's suites that there are here. It keeps many others, which no client needs.
        "ciphers": None if names == usual else ":".join(common),
        "tls12": tls12,
        "tls13": tls13,
    }


def _shown(context: Any) -> str:
    return "nothing" if context is None else "a %s of its own" % type(context).__name__


def _refuse(context: Context, plain: Context) -> None:
    crl = ssl.VERIFY_CRL_CHECK_LEAF | ssl.VERIFY_CRL_CHECK_CHAIN
    if context.verify_flags & crl:
        raise Unusable("revocation lists (VERIFY_CRL_CHECK_…) cannot be honoured")
    if context.sni_callback is not None:
        raise Unusable("certificates by server name (sni_callback) cannot be honoured")
    if context.keylog_filename is not None:
        raise Unusable("keylog_filename cannot be honoured")
    if context.num_tickets != plain.num_tickets or context.options & ssl.OP_NO_TICKET:
        raise Unusable("session tickets are always given; num_tickets and OP_NO_TICKET cannot be honoured")


def _is_13(suite: str) -> bool:
    return suite.startswith("TLS_")


def _speaks(context: Context, version: ssl.TLSVersion, off: int) -> bool:
    # The two bounds that name no version are below and above all others.
    lowest, highest = context.minimum_version, context.maximum_version
    above = lowest == ssl.TLSVersion.MINIMUM_SUPPORTED or version >= lowest
    below = highest == ssl.TLSVersion.MAXIMUM_SUPPORTED or version <= highest
    return above and below and not context.options & off
