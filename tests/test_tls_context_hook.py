"""The hook `ssl_context`: what it changes in the context of `default_factory` is how TLS is spoken; what the server cannot see or
keep is refused in a sentence."""
import signal
import ssl

import pytest

import harness
import wire
from test_tls import Secure, authority, client_context, environ, https, openssl, site, stranger  # noqa: F401

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def hook(*lines):
    body = "".join("    %s\n" % line for line in ("context = default_factory()",) + lines)
    return "import ssl\n\ndef ssl_context(config, default_factory):\n%s    return context\n" % body


def speaks(running, context):
    """Whether a request is answered; in TLS 1.3 a client learns of a refusal with its first read."""
    try:
        with Secure(running, context) as connection:
            return connection.exchange().status == 200
    except (ssl.SSLError, wire.ProtocolError, ConnectionError):
        return False


def test_the_default_changes_nothing(server, site, authority):  # noqa: F811
    running = server("apps.echo:app", *https(site), config=hook())
    assert all(speaks(running, client_context(authority, version)) for version in (TLS12, TLS13))
    with Secure(running, client_context(authority)) as connection:
        seen = environ(connection)
        assert (seen["wsgi.url_scheme"], seen["SSL_CLIENT_VERIFY"]) == ("https", "NONE")


@pytest.mark.parametrize("line, spoken", [
    ("context.minimum_version = ssl.TLSVersion.TLSv1_3", [False, True]),
    ("context.maximum_version = ssl.TLSVersion.TLSv1_2", [True, False]),
    ("context.options |= ssl.OP_NO_TLSv1_2", [False, True]),
    ("context.minimum_version = ssl.TLSVersion.TLSv1_2", [True, True]),
])
def test_versions(server, site, authority, line, spoken):  # noqa: F811
    # Options that name versions are deprecated, which is no matter here.
    running = server("apps.hello:app", *https(site), config=hook(line), env={"PYTHONWARNINGS": "ignore"})
    assert [speaks(running, client_context(authority, version)) for version in (TLS12, TLS13)] == spoken


def test_ciphers(server, site, authority):  # noqa: F811
    line = "context.set_ciphers('ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES256-SHA')"
    running = server("apps.hello:app", *https(site), config=hook(line))
    client = client_context(authority, TLS12)
    with Secure(running, client) as connection:
        assert connection.sock.cipher()[0] == "ECDHE-ECDSA-CHACHA20-POLY1305"
    client.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    assert not speaks(running, client)
    assert speaks(running, client_context(authority, TLS13))


def test_groups_of_ciphers(server, site, authority):  # noqa: F811
    """By OpenSSL's own words, as published hooks have them; what is left of them is spoken."""
    running = server("apps.hello:app", *https(site), config=hook("context.set_ciphers('ECDHE+AESGCM:!aNULL')"))
    client = client_context(authority, TLS12)
    assert speaks(running, client)
    client.set_ciphers("ECDHE-ECDSA-CHACHA20-POLY1305")
    assert not speaks(running, client)


@pytest.mark.parametrize("lines", [
    ["context.load_verify_locations(cafile=%r)", "context.verify_mode = ssl.CERT_REQUIRED"],
    ["context.load_verify_locations(cadata=open(%r).read())", "context.verify_mode = ssl.CERT_REQUIRED"],
])
def test_client_certificates(server, site, authority, stranger, lines):  # noqa: F811
    lines[0] %= authority.certificate
    running = server("apps.echo:app", *https(site), config=hook(*lines))
    with Secure(running, client_context(authority, identity=authority.issue("client"))) as connection:
        assert environ(connection)["SSL_CLIENT_VERIFY"] == "SUCCESS"
    assert not speaks(running, client_context(authority))
    assert not speaks(running, client_context(authority, identity=stranger.issue("client")))


def test_settings_go_into_the_default_and_the_hook_goes_over_them(server, site, authority):  # noqa: F811
    options = https(site, "--ca-certs", authority.certificate, "--cert-reqs", "2")
    checks = "assert context.verify_mode == ssl.CERT_REQUIRED and len(context.get_ca_certs()) == 1 and config.cert_reqs == 2"
    running = server("apps.echo:app", *options, config=hook(checks, "context.verify_mode = ssl.CERT_OPTIONAL"))
    with Secure(running, client_context(authority)) as connection:
        assert environ(connection)["SSL_CLIENT_VERIFY"] == "NONE"
    with Secure(running, client_context(authority, identity=authority.issue("client"))) as connection:
        assert environ(connection)["SSL_CLIENT_VERIFY"] == "SUCCESS"


def test_another_certificate(server, site, authority, stranger):  # noqa: F811
    """Loaded into the context of the default, it is seen."""
    other = stranger.issue("other")
    running = server("apps.hello:app", *https(site), config=hook("context.load_cert_chain(%r, %r)" % other))
    assert speaks(running, client_context(stranger)) and not speaks(running, client_context(authority))


def test_a_reload_asks_again(server, site, authority):  # noqa: F811
    running = server("apps.hello:app", *https(site), config=hook())
    assert speaks(running, client_context(authority, TLS12))
    running.write("gunicorn.conf.py", hook("context.minimum_version = ssl.TLSVersion.TLSv1_3"))
    running.signal(signal.SIGHUP)
    running.wait_log("Reload complete")
    harness.wait_until(lambda: not speaks(running, client_context(authority, TLS12)))
    assert speaks(running, client_context(authority, TLS13))
    running.write("gunicorn.conf.py", hook("return None"))
    running.expect_errors("Reload failed")
    running.signal(signal.SIGHUP)
    running.wait_log(r"Reload failed, the old configuration stays: gunicorn\.conf\.py:3: ssl_context: it gave nothing")
    assert speaks(running, client_context(authority, TLS13))


def test_it_is_called_once_in_the_arbiter(server, site, authority):  # noqa: F811
    config = hook("import os; open('called', 'a').write('%d ' % os.getpid())")
    running = server("apps.hello:app", *https(site), "-w", "2", config=config)
    running.wait_workers(2)
    assert all(speaks(running, client_context(authority)) for _ in range(3))
    assert running.read("called") == "%d " % running.pid


REFUSED = [
    (["return None"], "it gave nothing; what is in a context that default_factory() has not made"),
    (["return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)"], "it gave a SSLContext of its own; "),
    (["context.set_alpn_protocols(['h2'])"], "http/1.1 is what is spoken"),
    (["context.set_ecdh_curve('prime256v1')"], "set_ecdh_curve cannot be honoured"),
    (["context.set_servername_callback(print)"], "certificates by server name"),
    (["context.sni_callback = lambda *arguments: None"], "certificates by server name"),
    (["context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF"], "revocation lists"),
    (["context.load_verify_locations(capath='/etc/ssl/certs')"], "authorities in a folder"),
    (["context.load_default_certs()"], "the system's authorities"),
    (["context.keylog_filename = 'keys'"], "keylog_filename cannot be honoured"),
    (["context.num_tickets = 0"], "session tickets are always given"),
    (["context.set_ciphers('ECDHE-ECDSA-AES256-SHA')", "context.maximum_version = ssl.TLSVersion.TLSv1_2"],
     "neither TLS 1.2 nor 1.3 is left to speak, with a cipher suite among: TLS_AES_256_GCM_SHA384"),
    (["context.options |= ssl.OP_NO_TLSv1_2 | ssl.OP_NO_TLSv1_3"], "neither TLS 1.2 nor 1.3 is left to speak"),
    (["raise ValueError('on purpose')"], "it raised"),
]


def refusal(folder, config, *options):
    (folder / "gunicorn.conf.py").write_text(config)
    done = harness.run("-b", "127.0.0.1:0", *options, "apps.hello:app", cwd=str(folder))
    assert done.returncode == 1 and "panicked" not in done.stderr, done.stderr
    return done.stderr


@pytest.mark.parametrize("lines, why", REFUSED, ids=[why for _, why in REFUSED])
def test_what_cannot_be_honoured(site, tmp_path, lines, why):  # noqa: F811
    said = refusal(tmp_path, hook(*lines), *https(site))
    assert said.startswith("rgunicorn: gunicorn.conf.py:3: ssl_context: " + why), said
    assert ("Traceback" in said) == ("raised" in why)
    assert "Traceback" not in said or "ValueError: on purpose" in said


def test_an_encrypted_key(site, tmp_path):  # noqa: F811
    """Nobody is asked for a passphrase, and a hook that knows it is told that this does not help."""
    certificate, key = site
    encrypted = str(tmp_path / "encrypted.pem")
    openssl("pkcs8", "-topk8", "-in", key, "-out", encrypted, "-passout", "pass:secret")
    for lines in [(), ("context.load_cert_chain(config.certfile, config.keyfile, 'secret')",)]:
        said = refusal(tmp_path, hook(*lines), "--certfile", certificate, "--keyfile", encrypted)
        assert said.startswith("rgunicorn: gunicorn.conf.py:3: ssl_context: its key is encrypted"), said


def test_without_a_certificate(tmp_path):
    said = refusal(tmp_path, hook())
    assert said == "rgunicorn: gunicorn.conf.py:3: ssl_context: there is no certificate to go with it (--certfile)\n"
