"""Every setting has a test that shows its effect on a running server: the registry of those tests, and the tests of settings
that have no better place. A setting that is added to the table fails here until it is in the registry."""
import ast
import json
import os
import re
import stat

import pytest

import harness
import wire
from harness import compile_library, wait_until

pytest.importorskip("rgunicorn", reason="the table is in the package")
from rgunicorn import _core  # noqa: E402

SETTINGS = {row["name"]: row for row in _core.settings()}

HERE = "test_settings_effects.py::"
HOOKS = "test_hooks.py::test_the_whole_life"
EFFECTS = {
    # The application
    "wsgi_app": "test_cli.py::test_config_file_settings",
    "paste": "test_paste.py::test_paste_serves_a_pyramid_site",
    "raw_paste_global_conf": "test_paste.py::test_paste_global",
    "pythonpath": "test_cli.py::test_pythonpath",
    "chdir": "test_cli.py::test_chdir",
    "raw_env": "test_environ.py::test_raw_env_reaches_the_application",
    "preload_app": "test_arbiter.py::test_preload_imports_once",
    "warm_up": "test_warm_up.py::test_each_request_is_whole_and_before_any_other",
    "config": "test_cli.py::test_toml_file",
    "check_config": "test_cli.py::test_check_config",
    "print_config": "test_process.py::test_print_config",
    # Listening
    "bind": "test_cli.py::test_bind_several",
    "backlog": "test_cli.py::test_backlog",
    "reuse_port": "test_process.py::test_reuse_port",
    # Workers
    "workers": "test_cli.py::test_workers",
    "threads": "test_threads.py::test_requests_are_inside_at_once",
    "worker_class": HERE + "test_worker_class",
    "worker_connections": "test_cli.py::test_worker_connections",
    "max_requests": "test_cli.py::test_max_requests",
    "max_requests_jitter": "test_cli.py::test_max_requests_jitter",
    "timeout": "test_deadlines.py::test_a_stuck_request_is_answered_and_its_worker_replaced",
    "boot_timeout": "test_verified_reload.py::test_a_release_that_does_not_boot",
    "graceful_timeout": "test_arbiter.py::test_term_with_a_stuck_request_ends_after_the_graceful_timeout",
    "keepalive": "test_cli.py::test_keep_alive_time",
    "header_timeout": "test_http.py::test_header_deadline",
    "body_timeout": "test_http.py::test_body_deadline",
    "queue_timeout": "test_overload.py::test_who_waits_longer_than_the_queue_timeout_is_told_while_all_are_busy",
    "response_buffer": "test_response_buffer.py::test_without_it_the_application_waits_for_its_client",
    "write_timeout": HERE + "test_write_timeout",
    "limit_request_line": "test_cli.py::test_limit_request_line",
    "limit_request_fields": "test_cli.py::test_limit_request_fields",
    "limit_request_field_size": "test_cli.py::test_limit_request_field_size",
    "limit_request_head": "test_cli.py::test_limit_request_head",
    "limit_request_body": "test_request_bodies.py::test_limit_request_body",
    "request_buffering": "test_request_bodies.py::test_a_streamed_chunked_body_says_so",
    # Behind a proxy
    "forwarded_allow_ips": "test_environ.py::test_who_is_believed",
    "secure_scheme_headers": HERE + "test_secure_scheme_headers",
    "forwarder_headers": HERE + "test_forwarder_headers",
    "header_map": HERE + "test_header_map",
    "proxy_protocol": "test_proxy_protocol.py::test_the_version_that_was_chosen",
    "proxy_allow_ips": "test_proxy_protocol.py::test_who_must_send_it_and_who_must_not",
    "root_path": "test_parser_settings.py::test_root_path",
    # What is taken for a request
    "protocol": "test_parser_settings.py::test_what_cannot_be_is_refused",
    "uwsgi_allow_ips": "test_parser_settings.py::test_uwsgi_allow_ips_is_accepted",
    "http_parser": "test_parser_settings.py::test_http_parser_is_accepted",
    "permit_obsolete_folding": "test_parser_settings.py::test_permit_obsolete_folding_and_strip_header_spaces",
    "strip_header_spaces": "test_parser_settings.py::test_permit_obsolete_folding_and_strip_header_spaces",
    "permit_unconventional_http_method": "test_parser_settings.py::test_permit_unconventional_http_method",
    "permit_unconventional_http_version": "test_parser_settings.py::test_permit_unconventional_http_version",
    "casefold_http_method": "test_parser_settings.py::test_casefold_http_method",
    # TLS
    "certfile": "test_tls.py::test_certificate_and_key_in_one_file",
    "keyfile": "test_tls.py::test_both_versions_and_what_the_application_is_told",
    "ca_certs": "test_tls.py::test_client_certificates",
    "cert_reqs": "test_tls.py::test_client_certificates",
    "ciphers": "test_tls.py::test_an_rsa_certificate_and_a_chosen_cipher",
    "ssl_version": "test_tls.py::test_a_config_file_may_use_the_constants_of_ssl",
    "suppress_ragged_eofs": "test_tls.py::test_a_config_file_may_use_the_constants_of_ssl",
    "do_handshake_on_connect": "test_tls.py::test_a_config_file_may_use_the_constants_of_ssl",
    # Logging
    "accesslog": "test_cli.py::test_access_logfile",
    "access_log_format": "test_cli.py::test_access_logformat",
    "errorlog": "test_cli.py::test_error_logfile",
    "loglevel": "test_cli.py::test_log_level",
    "logger_class": "test_logging_config.py::test_logger_class",
    "logconfig": "test_logging_config.py::test_logconfig_gets_the_lines_of_arbiter_and_workers",
    "logconfig_dict": "test_logging_config.py::test_defaults_are_replaced_key_by_key",
    "logconfig_json": "test_logging_config.py::test_a_dictionary_goes_before_json_and_that_before_a_file",
    "syslog": "test_syslog.py::test_both_logs_go_to_syslog",
    "syslog_addr": "test_syslog.py::test_both_logs_go_to_syslog",
    "syslog_prefix": "test_syslog.py::test_prefix_facility_and_priorities",
    "syslog_facility": "test_syslog.py::test_prefix_facility_and_priorities",
    "disable_redirect_access_to_syslog": "test_syslog.py::test_access_log_stays_out_of_syslog",
    "capture_output": "test_logging_config.py::test_capture_output",
    "enable_stdio_inheritance": "test_logging_config.py::test_standard_output_of_a_daemon",
    "statsd_host": "test_statsd.py::test_requests_are_counted",
    "statsd_prefix": "test_statsd.py::test_prefix_and_tags",
    "dogstatsd_tags": "test_statsd.py::test_prefix_and_tags",
    "enable_backlog_metric": "test_statsd.py::test_backlog",
    # Development
    "reload": "test_reload_on_change.py::test_saved_code_is_served",
    "reload_engine": "test_reload_on_change.py::test_polling_takes_over_where_no_watch_is_left",
    "reload_extra_files": "test_reload_on_change.py::test_extra_files_and_patterns",
    "spew": "test_reload_on_change.py::test_spew",
    # The process
    "daemon": "test_arbiter.py::test_daemon",
    "pidfile": "test_cli.py::test_pid_file",
    "user": "test_process.py::test_workers_run_as_the_user",
    "group": "test_process.py::test_user_and_group_in_the_config_file",
    "initgroups": "test_process.py::test_initgroups",
    "proc_name": "test_process.py::test_titles",
    "default_proc_name": "test_process.py::test_titles",
    "umask": HERE + "test_umask",
    "worker_tmp_dir": "test_request_bodies.py::test_a_large_body_waits_in_a_file_and_leaves_nothing",
    "tmp_upload_dir": "test_process.py::test_folders_without_a_use",
    "sendfile": HERE + "test_sendfile",
    # The control socket
    "control_socket": "test_control_socket.py::test_it_is_relative_to_the_working_folder",
    "control_socket_mode": "test_control_socket.py::test_control_socket_mode",
    "control_socket_disable": "test_control_socket.py::test_control_socket_disable_in_a_file",
    # Hooks
    "on_starting": HOOKS, "when_ready": HOOKS, "pre_fork": HOOKS, "post_fork": HOOKS, "post_worker_init": HOOKS,
    "worker_exit": HOOKS, "child_exit": HOOKS, "nworkers_changed": HOOKS, "on_exit": HOOKS,
    "on_reload": "test_hooks.py::test_a_reload_brings_its_own_hooks",
    "worker_int": "test_hooks.py::test_worker_int_before_worker_exit",
    "worker_abort": "test_hooks.py::test_worker_abort",
    "pre_request": "test_hooks.py::test_requests_and_responses",
    "post_request": "test_hooks.py::test_requests_and_responses",
    "ssl_context": "test_tls_context_hook.py::test_versions",
    "pre_exec": "test_upgrade.py::test_pre_exec_is_called_in_the_child",
}
# Their effect is a warning, and that the rest of the command line is understood.
IGNORED = HERE + "test_what_is_ignored_is_named_once"
EFFECTS.update({name: IGNORED for name, row in SETTINGS.items() if row["ignored"]})


def functions(file):
    """The source of each test of a file, by name."""
    source = harness.read_text(os.path.join(harness.TESTS, file))
    found = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.get_source_segment(source, node) for node in found}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_setting_has_a_test(name):
    assert name in EFFECTS, "no test shows the effect of %s: name one in EFFECTS" % name
    file, _, function = EFFECTS[name].partition("::")
    assert function in functions(file), "%s does not exist" % EFFECTS[name]
    words = [name] + SETTINGS[name]["flags"]
    source = harness.read_text(os.path.join(harness.TESTS, file))
    assert any(word in source for word in words), "%s says nothing of %s" % (file, name)


def test_the_registry_has_nothing_else():
    assert set(EFFECTS) == set(SETTINGS)


# --- settings that have no better place ---

ECHO = "apps.echo"


def environ(running, headers=()):
    return json.loads(running.get("/", headers).text)["environ"]


@pytest.mark.parametrize("options, worker", [
    ([], "sync"),
    (["-k", "sync"], "sync"),
    (["-k", "gthread"], "gthread"),
    (["--worker-class", "egg:gunicorn#gthread", "--threads", "2"], "gthread"),
    (["-k", "gunicorn.workers.sync.SyncWorker", "--threads", "2"], "gthread"),
])
def test_worker_class(server, options, worker):
    """sync with threads is gthread, as in gunicorn."""
    running = server(ECHO, *options)
    assert running.wait_log(r"Using worker: (\w+)").group(1) == worker
    assert environ(running)["wsgi.multithread"] is ("--threads" in options)


def test_worker_class_as_an_object(server):
    running = server(ECHO, config="""
        class ThreadWorker:
            pass

        ThreadWorker.__module__ = "gunicorn.workers.gthread"
        worker_class = ThreadWorker
    """)
    running.wait_log(r"Using worker: gthread")


def test_write_timeout(server):
    """A client that takes nothing any more is given up, and the application is told."""
    running = server("""
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return body()

        def body():
            try:
                while True:
                    yield b"x" * 65536
            finally:
                open("given-up", "w").close()
    """, "--write-timeout", "1")
    with wire.Connection(running.address, receive_buffer=4096) as connection:
        connection.send_request("GET", "/")
        wait_until(lambda: running.exists("given-up"), 30)
    assert running.wait_workers(1)


def test_umask(server, tmp_path):
    modes = {}
    for umask in ("0", "0007", "0o177"):
        running = server(ECHO, "--umask", umask, bind="unix:%s/%s" % (tmp_path, umask))
        modes[umask] = stat.S_IMODE(os.stat(str(tmp_path / umask)).st_mode)
        assert running.get("/").status == 200
    assert modes == {"0": 0o777, "0007": 0o770, "0o177": 0o600}


def test_secure_scheme_headers(server):
    running = server(ECHO, config="secure_scheme_headers = {'X-Our-Proto': 'TLS'}\n")
    assert environ(running, [("X-Our-Proto", "TLS")])["wsgi.url_scheme"] == "https"
    assert environ(running, [("X-Our-Proto", "tls")])["wsgi.url_scheme"] == "http"
    assert environ(running, [("X-Forwarded-Proto", "https")])["wsgi.url_scheme"] == "http"


@pytest.mark.parametrize("allowed, kept", [
    ("SCRIPT_NAME,PATH_INFO", set()), ("remote_user", {"HTTP_REMOTE_USER"}), ("*", {"HTTP_REMOTE_USER", "HTTP_OTHER_NAME"}),
])
def test_forwarder_headers(server, allowed, kept):
    """Names with an underscore that a trusted peer may send."""
    found = environ(server(ECHO, "--forwarder-headers", allowed), [("Remote_User", "x"), ("Other_Name", "y")])
    assert {"HTTP_REMOTE_USER", "HTTP_OTHER_NAME"} & set(found) == kept


@pytest.mark.parametrize("word, status, seen", [("drop", 200, False), ("refuse", 400, None), ("dangerous", 200, True)])
def test_header_map(server, word, status, seen):
    response = server(ECHO, "--header-map", word).get("/", [("Other_Name", "y")])
    assert response.status == status
    if seen is not None:
        assert ("HTTP_OTHER_NAME" in json.loads(response.text)["environ"]) is seen


SPY = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/sendfile.h>
#include <unistd.h>

static void note(void) { close(open("sendfile-was-called", O_CREAT | O_WRONLY, 0644)); }

ssize_t sendfile(int out, int in, off_t *offset, size_t count) {
    note();
    return ((ssize_t (*)(int, int, off_t *, size_t))dlsym(RTLD_NEXT, "sendfile"))(out, in, offset, count);
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t count) {
    note();
    return ((ssize_t (*)(int, int, off64_t *, size_t))dlsym(RTLD_NEXT, "sendfile64"))(out, in, offset, count);
}
"""
FILE = """
    def app(environ, start_response):
        file = open("data", "rb")
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "300000")])
        return environ["wsgi.file_wrapper"](file)
"""


@pytest.mark.parametrize("options, env, config, used", [
    ([], {}, "", True),
    (["--no-sendfile"], {}, "", False),
    ([], {"SENDFILE": "no"}, "", False),
    ([], {"SENDFILE": "yes"}, "", True),
    ([], {"SENDFILE": "no"}, "sendfile = True", True),
    ([], {}, "sendfile = False", False),
])
def test_sendfile(server, tmp_path, options, env, config, used):
    library = compile_library(tmp_path / "spy.so", SPY)
    directory = tmp_path / "site"
    directory.mkdir()
    (directory / "data").write_bytes(b"x" * 300000)
    running = server(FILE, *options, env=dict(env, LD_PRELOAD=harness.preload(library)), config=config, directory=directory)
    assert len(running.get("/").body) == 300000
    assert running.exists("sendfile-was-called") is used


# A value for each of these that is not the default, and what stands before it in a Python file.
UNSERVED = {
    "asgi_loop": "uvloop", "asgi_lifespan": "off", "asgi_disconnect_grace_period": 5, "websocket_max_message_size": 1,
    "http_protocols": "h2,h1", "http2_cleartext": "both", "http2_max_concurrent_streams": 5, "http2_initial_window_size": 70000,
    "http2_max_frame_size": 20000, "http2_max_header_list_size": 1, "dirty_apps": "module:App", "dirty_workers": 2,
    "dirty_timeout": 5, "dirty_threads": 2, "dirty_graceful_timeout": 5, "on_dirty_starting": None, "dirty_post_fork": None,
    "dirty_worker_init": None, "dirty_worker_exit": None,
}


def test_what_is_ignored_is_named_once(server):
    assert set(UNSERVED) == {name for name, row in SETTINGS.items() if row["ignored"]}
    flags = []
    for name, value in UNSERVED.items():
        if SETTINGS[name]["flags"]:
            flags += [SETTINGS[name]["flags"][0], str(value)]
    # The application's name comes last: no flag may swallow it.
    by_flag = server(ECHO, *flags)
    lines = ["def %s(*arguments): raise SystemExit(1)\n" % n if v is None else "%s = %r\n" % (n, v) for n, v in UNSERVED.items()]
    by_file = server(ECHO, config="".join(lines))
    by_variable = server(ECHO, env={"GUNICORN_CMD_ARGS": " ".join(flags)})
    for running, named in [(by_flag, flags), (by_file, list(UNSERVED)), (by_variable, flags)]:
        assert running.get("/").status == 200
        [warning] = [message for _, level, message in running.lines("WARNING")]
        assert warning.startswith("Ignored: ")
        names = [name for name in UNSERVED if named is not flags or SETTINGS[name]["flags"]]
        assert [name for name in names if not re.search(r"\b%s\b" % name, warning)] == []


def test_what_is_ignored_at_its_default_is_not_named(server):
    running = server(ECHO, "--http-protocols", "h1", "--dirty-workers=0", config="asgi_loop = 'auto'\non_dirty_starting = None\n")
    wait_until(lambda: running.get("/").status == 200)
    assert running.lines("WARNING") == []
