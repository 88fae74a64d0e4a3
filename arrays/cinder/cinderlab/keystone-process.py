"""Keystone's public API, one request at a time, for tests. Debian's package.

    keystone-process.py KEYSTONE.CONF PORT DATABASE

It ends when its standard input does.
"""
import os
import sqlite3
import sys
import threading
from wsgiref import simple_server

conf, port, database = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.argv = sys.argv[:1]  # Keystone reads the rest as options of its own

from keystone.server.flask import core  # noqa: E402


class Quiet(simple_server.WSGIRequestHandler):
    def log_message(self, *_):
        pass


def watch():
    while os.read(0, 1):
        pass
    os._exit(0)


# Keystone reads by one connection while it writes by another.
sqlite3.connect(database).execute('PRAGMA journal_mode=WAL')
app = core.initialize_application('public', config_files=[conf])
threading.Thread(target=watch, daemon=True).start()
simple_server.make_server('127.0.0.1', port, app,
                          handler_class=Quiet).serve_forever()
