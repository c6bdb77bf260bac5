#!/usr/bin/env python3
# Copyright 2026 the dispyadmin authors
# SPDX-License-Identifier: Apache-2.0
"""dispyadmin: find, watch and control the nodes of a dispy cluster from a web page.

Copy this one file to the head node of the cluster, run "python3 dispyadmin.py --secret -" and open
http://localhost:8181/.  It needs Python 3.6 or newer and nothing else: no packages, no files beside it.
"Nodes" are the machines that run dispynode.py; those started with --admin_secret can be controlled.

Threads, and what they share:

    listener   hears datagrams and connections of nodes --+                +--> http, http-N the page and its JSON
    announcer  asks for nodes on every interface          +-> NODE TABLE --+--> console      commands on a terminal
    poller     asks every known node; pairs; controls   --+   one lock     +--> main         waits for the end
    seeker     asks the hosts of --node                 --+                +--> history      keeps the last hours
    reconciler drains, drift, the state file            --+
    alerts     runs the program of --on_event

What is promised: a node that does not answer never delays one that does; what the network sends is never executed,
only read as plain values; an auth code goes only to the address that has shown the sign which it is made from.

The module reads from top to bottom: facts, values, state, threads, surface, entry.  Look for the banners.
"""
import signal

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word while it reads its modules, too

import argparse
import ast
import base64
import collections
import configparser
import contextlib
import copy
import csv
import datetime
import errno
import fnmatch
import functools
import gc
import getpass
import gzip
import hashlib
import heapq
import hmac
import http.client
import http.server
import io
import ipaddress
import itertools
import json
import logging
import math
import operator
import os
import pickle  # to write requests only: read_value() reads what comes in, as even a strict find_class is not safe
import pickletools
import random
import re
import secrets
import select
import selectors
import shlex
import shutil
import socket
import ssl
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
import urllib.parse

try:
    import fcntl
    import pwd
    import resource
    import termios
except ImportError:  # not a POSIX system: limits stay as they are, users have no names, and there is no console
    fcntl = pwd = resource = termios = None

__version__ = '1.0.1'

logger = logging.getLogger('dispyadmin')


# ---------------------------------------------------------------------------------------------------------------------
# Protocol facts and limits
# ---------------------------------------------------------------------------------------------------------------------

# Releases that speak this protocol.  A node answers a discovery datagram only if it names the node's own release.
DISPY_RELEASES = ('4.11.0', '4.11.1', '4.12.0', '4.12.1', '4.12.2', '4.12.3', '4.12.4', '4.13.0', '4.14.0',
                  '4.15.0', '4.15.1', '4.15.2')

# (info port, node port): dispy 4.15, then dispy 4.11 to 4.14.
PORT_PAIRS = ((9700, 9701), (61590, 61591))
RESERVED_PORTS = frozenset(first + number for first, _ in PORT_PAIRS for number in range(3))  # dispyscheduler's
REPLY_PORT = 9707              # TCP, where nodes answer searches.  dispy uses 9700 to 9702, pycos 9705
HTTP_PORT = 8181

GROUP_V4, GROUP_V6 = '239.255.61.59', 'ff05::b409:3171:9705:5134:6159'
BROADCAST = '255.255.255.255'  # where a node without netifaces listens
HOPS = 1                       # TTL and hop limit of discovery: the segment, no further

SIGN = re.compile(r'[0-9a-f]{40}\Z')
RELEASE = re.compile(r'[0-9]{1,4}(\.[0-9]{1,4}){1,3}\Z')
NO_CODE = b'0' * 40            # an auth code that opens nothing: asks a node for its sign

# Times, in seconds.
POLL_INTERVAL, PING_INTERVAL = 60, 600
LEAST_INTERVAL, MOST_INTERVAL = 1, 86400  # of polls ...
LEAST_PAGE_INTERVAL = 5        # ... and from the page, which is open to more hands
EXCHANGE_TIME = 4.0            # one exchange, from connect to the last byte: a node that swaps answers in a second
QUICK_TIME = 0.5               # after which an exchange counts as slow
ENDING_TIME = 10.0             # in which a node that announced its end is watched closely
# Polls that are due within a tick begin together, as one of many costs less than one alone: a tick is long enough
# for so many of them, within these bounds, and at most half the poll interval.
TICK_POLLS, LEAST_TICK, LONGEST_TICK = 50, 0.25, 1.0
LONGEST_TURN = 60.0            # the poller waits at most
LATE_TIME = 60.0               # or three poll intervals, by which a poll may be late on a busy machine
AGE_INTERVAL = 0.1             # between looks at open exchanges: whether they last too long
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0  # until a silent node is asked again; doubled each time
# Where it is held whole (see HEARS_APART), the info port is shared with dispy clients (JobCluster), which try to
# take it every 5 s and must have it within 30 s: a client that starts just after the port was taken waits 16 s,
# then at most 5 s more for its own next try, which falls into the 7 s in which the port is free.
HOLD_TIME, REST_TIME, RETRY_TIME = 16.0, 7.0, 5.0  # the last between our tries, while a client has the port
DEAF_PING_INTERVAL = 10.0      # between discoveries while announcements to all are not heard
EARLY_PINGS = {1: 3.0, 2: 6.0}  # after the first and the second discovery: datagrams get lost
# --list asks for nodes itself for so long: until none has been found for LIST_QUIET, LIST_TIME at most when all
# that are known of have been asked, and in any case LIST_LONGEST.
LIST_QUIET, LIST_TIME, LIST_LONGEST = 2.0, 5.0, 30.0
LIST_ANSWER_TIME = 10.0        # for each part of the answer of a running dispyadmin
KEEP_INTERVAL = 2.0            # between steps of drains, and looks at what was set
KEEP_PAUSE, LONGEST_KEEP_PAUSE = 30.0, 3600.0  # until the same is set again at a node; doubled until that helps
STATE_TIME = 10.0              # for the state file to be read or written
END_WAIT = 15.0                # in which a dispynode ends that was told to end now, at the longest
EVENT_TIME = 2.0               # within which the same, at many nodes, is one event
GATHER_TIME = 1.0              # for which what happens is gathered before the program of --on_event is run,
ALERT_TIME = 30.0              # that it may run,
ALERT_PAUSE = 10.0             # and between two of its runs for the same kind of event
LOOK_INTERVAL = 0.25           # between looks for an alert that is due, and for what is typed
WATCH_INTERVAL = 10.0          # between looks at this machine's addresses
PIPE_TIME = 5.0                # in which some program must open the pipe that an option names as a file
REQUEST_TIME = 15.0            # in which a request must have arrived whole
LINGER_TIME = 1.0              # in which what still comes is read after the last answer
IDLE_TIME = 75.0               # that a browser may keep a connection open without asking
END_TIME = 0.7                 # for threads to end; those that then still run die with the program

# Bounds.  A full reply has 13 fields, one of which has four.  With the longest name that is shown (MAX_TEXT
# characters of 4 bytes), numbers of 9 bytes and field names it stays below 2 KiB; eight times that is for growth.
MAX_MESSAGE = 16 * 1024        # bytes
MAX_DATAGRAM = 2 * 1024        # bytes: nodes send about 200
MAX_OPCODES = 4096             # steps in reading one message: 17 values make 110
MAX_DEPTH = 8                  # containers within containers: nodes send 2
MAX_INT_BYTES = 16             # disk sizes need 8
MAX_TEXT = 200                 # characters of a name that are kept
MAX_FILE = 1 << 20             # bytes of a configuration, or of a file with a secret or a token
MAX_OWN = 256                  # addresses of this machine that are heard at: each has two sockets
MAX_ADDRESSES = 16             # addresses kept of one node: interfaces of a well connected machine, twice
MAX_SIGNS = 3                  # signs taken from one node in one conversation: it may restart in the middle of it
MAX_SECRETS = 32               # each costs one exchange with each locked node, once
MAX_COMPLAINTS = 200           # senders of bad messages that are named in the log, each hour
MAX_RELEASES = 32              # releases asked for: the twelve known ones, and what is heard from newer nodes
MAX_WAITING = 8192             # announced addresses that wait to be asked: 8192 * 600 bytes = 5 MB
MAX_MEETINGS = 64              # of them from one address in a minute: dispynodes on one machine, one for each port
MAX_NODES = 50000              # rows: at about 8 KB each, lists packed for readers included, 400 MB
# Rows of what announces itself but cannot be asked, and those of them at one address: one host must not take all.
MAX_UNASKED, MAX_UNASKED_EACH = 64, 4
MAX_STATE = 64 * 1024 * 1024   # bytes of a state file: 50,000 nodes have 40 MB
MAX_EVENTS = 1000              # kept to look at, each with ...
MAX_EVENT_NODES = 100          # ... so many ids at most: 1000 * 100 * 100 bytes = 10 MB
MAX_CHANGES = 50000            # outcomes at nodes that are kept, to look at and to undo: 50000 * 700 bytes = 35 MB
# Events that wait for the program of --on_event, nodes of them that are kept, and that are told to it in one run.
MAX_ALERTS, MAX_ALERT_IDS, MAX_ALERT_NODES = 100, 2 * MAX_NODES, 1000
MAX_ALERT_OUTPUT = 4096        # bytes of what it prints that are logged
MAX_FORGOTTEN = 10000          # ids that administrators forgot: 10000 * 200 bytes = 2 MB
MAX_REMOVED = 10000            # forgotten ids remembered for readers that ask for changes
# The last 4 hours: seconds between two samples, and their number.  240 samples of 6 bytes are 1.4 KB of each node,
# 14.4 MB of 10,000 nodes; 1440 samples of 56 bytes are 80 KB of the cluster.
SAMPLE_INTERVAL, SAMPLES = 60, 240
CLUSTER_INTERVAL, CLUSTER_SAMPLES = 10, 1440
MAX_LIST = 128 * 1024 * 1024   # bytes of a list of nodes that --list takes: 50,000 nodes have 30 MB
LEAST_FILES = 64               # open at one time: 26 at the start, and some for nodes and browsers
MAX_HEAD = 32 * 1024           # bytes of a request before its body: browsers send below 2 KiB
MAX_BODY_NODES = 20000         # ids in one request of the browser
MAX_BODY = MAX_BODY_NODES * 64  # bytes: an id has up to 60 (IPv6 with an interface's name), two quotes, a comma


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------

UNEXPECTED = 'dispyadmin met an unexpected error; see its log.'


class Error(Exception):
    """Something that an administrator is told as one sentence."""


class WireError(Error):
    """Bytes from the network that are not what the protocol allows."""


class NodeError(Error):
    """A node could not be asked, or its answer makes no sense."""

    is_sent = False  # whether something was sent to it, and may have been taken


class RefusedError(NodeError):
    """The machine is there, and nothing listens at the port."""


class MismatchError(NodeError):
    """What answers may well be a node, but TLS is used on one side only, or with another certificate."""


class InputError(Error):
    """An operation was asked for with a value that cannot be: the sentence names the field."""


class UnknownNode(Error):
    """An operation names a node that is not in the table."""


class UsageError(Error):
    """Command line or configuration cannot be used (exit status 2)."""


class StartError(Error):
    """Options are well formed but this machine cannot do it: port in use, no such address (exit status 1)."""


_RAISE_FILES = 'Raise the limit: "ulimit -n 4096" in the shell, or LimitNOFILE=4096 in the unit of systemd.'

# What the operating system says, and what to do.
SYSTEM_ERRORS = {getattr(errno, name, None): sentence for names, sentence in {
    'EHOSTUNREACH ENETUNREACH EHOSTDOWN ENETDOWN':
        'No route to it: the machine is off, or not on this network. Check its address and the routes of this '
        'machine.',
    'EACCES EPERM':
        'This machine forbids it. Allow it in the local firewall or security policy; to listen at a port below '
        '1024, dispyadmin must run as root.',
    'EMFILE ENFILE': 'Too many files are open. ' + _RAISE_FILES,
    'ENOSPC EDQUOT': 'No space is left there. Delete files, or choose another place.',
    'EROFS':
        'The file system is read-only. Choose another place, or name it as ReadWritePaths= in the unit of '
        'systemd.',
    'ENOENT': 'There is no such file or folder. Check the name.',
    'EADDRNOTAVAIL':
        'No interface of this machine has an address for it. Check the address, and that the interface is up.',
    'EADDRINUSE': 'Another program has this port.',
    'EAFNOSUPPORT': 'This machine has no IPv6. Give an IPv4 address.',
}.items() for name in names.split()}


def system_error(error, otherwise='%s.'):
    """What an OSError means and what to do; an Error says that itself.  `otherwise`: for what is not known."""
    if isinstance(error, Error):
        return str(error)
    if getattr(error, 'filename', None) is not None and error.errno in (errno.EACCES, errno.EPERM):
        return 'No permission. Give the user who runs dispyadmin access to it and to its folder.'
    # errors of TLS and of names have numbers of their own
    number = None if isinstance(error, (ssl.SSLError, socket.gaierror)) else getattr(error, 'errno', None)
    return SYSTEM_ERRORS.get(number) or otherwise % (getattr(error, 'strerror', None) or error)


# ---------------------------------------------------------------------------------------------------------------------
# Fields: what a node tells of itself, or is known of it
# ---------------------------------------------------------------------------------------------------------------------

MAX_CPUS = 65536               # of one machine; what a node may tell can be set, so that all can be restored
MAX_CLIENTS = 2 ** 31 - 1
MAX_TIME = 253402214400        # Unix time of the last day of the year 9999 that can be shown in any zone
_TOO_MUCH = 2 ** 62


def printable(text):
    """`text` safe for a log, a terminal or a page: U+FFFD for controls, direction marks, lone surrogates."""
    text = str(text)
    return text if text.isprintable() else ''.join(c if c.isprintable() else '\ufffd' for c in text)


def _integer(value, low=0, high=2 ** 31):
    return value if type(value) is int and low <= value <= high else None


def _real(value, low=0, high=_TOO_MUCH):
    """`value` when it is a number within bounds, else None (NaN fails both comparisons)."""
    return value if type(value) in (int, float) and low <= value <= high else None


def _text(value, most=MAX_TEXT):
    return printable(value[:most]) if isinstance(value, str) else None


def _name(value):
    return _text(value) or None


_cpus = functools.partial(_integer, high=MAX_CPUS)
_count = functools.partial(_integer, high=_TOO_MUCH)
_percent = functools.partial(_real, high=100)
_time = functools.partial(_real, low=1, high=MAX_TIME)  # 0 is no time

# A metric is `live` when it tells what is now: silent nodes have none.  `value` makes a number or None.
Metric = collections.namedtuple('Metric', 'name help live value')
Metric.__new__.__defaults__ = True, lambda value: value


def _share(percent):
    return percent and percent / 100


class Field:
    """One thing that a node tells of itself, or that is known of it.

    `key` is its name in JSON (a.b is b within a); `unit` is B, %, s, time (Unix time) or nothing.  `check` makes
    what a node sends a sane value or None; fields without it are not sent.  `column` is its place in --list.
    """

    def __init__(self, key, title, unit='', check=None, column=None, metric=None, is_in_csv=True):
        self.key, self.title, self.unit, self.check = key, title, unit, check
        self.column, self.metric, self.is_in_csv = column, metric, is_in_csv
        self.outer, _, self.inner = key.rpartition('.')
        self.csv_name = self.inner + '_available' if self.outer else key
        self.is_number = check not in (None, _name)

    def of(self, view):
        """What a node has, given its JSON; None where it has nothing."""
        return ((view.get(self.outer) or {}) if self.outer else view).get(self.inner)


# In the order of JSON and CSV.  Units of bytes and percent: what is available.
FIELDS = (
    Field('id', 'Node', column=1),
    Field('ip_addr', 'Address'),
    Field('port', 'Port'),
    Field('name', 'Name', check=_name, column=2),
    Field('version', 'Version', column=8),
    Field('state', 'State', column=3),
    Field('controllable', 'Controllable', metric=Metric(
        'controllable', 'Whether its settings can be changed from here.', True, int)),
    Field('reason', 'Reason', column=9),
    Field('cpus', 'CPUs', '', _cpus, 4, Metric('cpus', 'CPUs that dispy may use.')),
    Field('max_cpus', 'Machine CPUs', '', _cpus, metric=Metric('max_cpus', 'CPUs in the machine.')),
    Field('busy', 'Busy', '', _cpus, 5, Metric('busy_cpus', 'CPUs that run a job: running jobs.')),
    Field('avail_info.cpu', 'Free CPU', '%', _percent, 6, Metric(
        'available_cpu_ratio', 'Share of all its CPU time that is available, from 0 to 1.', value=_share)),
    Field('avail_info.memory', 'Free memory', 'B', _count, 7, Metric(
        'available_memory_bytes', 'Memory that is available.')),
    Field('avail_info.disk', 'Free disk', 'B', _count, metric=Metric(
        'available_disk_bytes', 'Room that is available on the disk for the files of jobs.')),
    Field('avail_info.swap', 'Free swap', '%', _percent, metric=Metric(
        'available_swap_ratio', 'Share of its swap space that is available, from 0 to 1.', value=_share)),
    Field('clients_done', 'Clients done', '', _count, metric=Metric(
        'clients_done_total', 'Clients that were served since it was started.', live=False)),
    Field('jobs_done', 'Jobs done', '', _count, metric=Metric(
        'jobs_done_total', 'Jobs that were done since it was started.', live=False)),
    Field('cpu_time', 'CPU time', 's', _real, metric=Metric(
        'cpu_seconds_total', 'CPU time that jobs took since it was started.', live=False)),
    Field('serve', 'Clients to serve', '', functools.partial(_integer, low=-1, high=MAX_CLIENTS), metric=Metric(
        'clients_to_serve', 'Clients that it will still serve; +Inf without limit.',
        value=lambda clients: math.inf if clients == -1 else clients)),
    Field('scheduler_ip', 'Client', check=_name),
    Field('service_start', 'Start', 'time', _time, metric=Metric(
        'service_start_timestamp_seconds', 'Unix time from which on it takes jobs, where it is set.')),
    Field('service_stop', 'Stop', 'time', _time, metric=Metric(
        'service_stop_timestamp_seconds', 'Unix time from which on it takes no new jobs, where it is set.')),
    Field('service_end', 'End', 'time', _time, metric=Metric(
        'service_end_timestamp_seconds', 'Unix time at which it ends, where it is set.')),
    Field('first_seen', 'First seen', 'time'),
    Field('update_time', 'Last answer', 'time', metric=Metric(
        'last_answer_timestamp_seconds', 'Unix time of its last answer.', live=False)),
    Field('addresses', 'Addresses', is_in_csv=False),
    Field('announces', 'Announces', is_in_csv=False),
    Field('groups', 'Groups', is_in_csv=False),
    Field('wanted', 'Settings', is_in_csv=False),
    Field('drift', 'Drift', is_in_csv=False, metric=Metric(
        'drifted_settings', 'Settings that are not as they were set here.', value=lambda drift: len(drift or ()))),
    Field('drain', 'Drain', is_in_csv=False, metric=Metric(
        'draining', 'Whether it shall take no new jobs until it is idle.', False, lambda drain: int(bool(drain)))),
    Field('notes', 'Notes', is_in_csv=False),
)

VIEW_KEYS = tuple(dict.fromkeys(field.outer or field.key for field in FIELDS))  # of a node's JSON
AVAILABLE = {field.inner: field.check for field in FIELDS if field.outer}
_CHECKS = {field.key: field.check for field in FIELDS if field.check and not field.outer}

# What a node tells, checked: avail_info is a tuple in the order of AVAILABLE; `cpus` are those that dispy manages.
Info = collections.namedtuple('Info', ['avail_info'] + list(_CHECKS))
NO_INFO = Info(*[None] * len(Info._fields))


# ---------------------------------------------------------------------------------------------------------------------
# Wire codec: bytes <-> values, no sockets
# ---------------------------------------------------------------------------------------------------------------------

def auth_code(secret, sign):
    """The 40 bytes that open the node with this `sign` (sha1 of secret and sign, in hex; protocol of dispy)."""
    return hashlib.sha1((secret + sign).encode('utf-8', 'surrogateescape')).hexdigest().encode('ascii')


def write_message(tag, value=None):
    """The bytes of a message: b'NODE_INFO:' and a pickle in protocol 2, which every node reads, Python 2.7 included."""
    return tag + (b'' if value is None else pickle.dumps(value, 2))


def frame(code, message):
    """A request as it goes over TCP: auth code, length, message."""
    return code + struct.pack('>L', len(message)) + message


class _AvailInfo(dict):
    """What nodes send as dispy.DispyNodeAvailInfo: cpu, memory, disk, swap."""


def _demand(condition, otherwise='a pickle of another form than nodes write'):
    if not condition:
        raise WireError(otherwise)


class _ValueReader:
    """Reads a pickle of plain values, protocols 2 to 5 (nodes write no other), and nothing else.

    Known are None, bool, int, float, str, list, tuple, dict with str keys, byte strings of Python 2 (read as str) and
    the one class of the protocol, read as a dict.  pickletools tells the opcodes; nothing is imported or called.
    Containers cannot be shared, so the result is a tree, no larger than the bytes it came from.  `read_value` is the
    way in: there, an opcode without a step is an error, and a step that finds no value, or none of its kind.
    """

    def __init__(self):
        self.outer = []  # stacks below the marks
        self.stack = []
        self.memo = {}

    def read(self, data):
        """The value."""
        _demand(re.match(b'\x80[\x02-\x05]', data))
        for count, (opcode, value, at) in enumerate(pickletools.genops(data[2:])):
            _demand(count < MAX_OPCODES)
            if opcode.name == 'INT':  # 64 bits in Python 2; and int() takes more than digits
                _demand(value.bit_length() <= 64 and data.startswith(b'%d\n' % value, at + 3))
            self.STEPS[opcode.name](self, value)
        _demand(not self.outer)
        value, = self.stack
        _demand_plain(value)
        return value

    def push(self, value):
        self.stack.append(value)

    def byte_string(self, text):
        """A str of Python 2, which pickletools takes for Latin-1: most are UTF-8."""
        with contextlib.suppress(UnicodeDecodeError):
            text = text.encode('latin-1').decode('utf-8', 'surrogatepass')
        self.push(text)

    def pop(self, count):
        """The last `count` values, which leave the stack."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def mark(self, _):
        self.outer.append(self.stack)
        self.stack = []

    def pop_mark(self):
        """The values above the topmost mark; they and the mark leave the stack."""
        values, self.stack = self.stack, self.outer.pop()
        return values

    def extend(self, values):
        list.extend(self.stack[-1], values)

    def set_items(self, flat):
        _demand(type(self.stack[-1]) is dict and len(flat) % 2 == 0 and all(isinstance(key, str) for key in flat[::2]))
        self.stack[-1].update(zip(flat[::2], flat[1::2]))

    def push_class(self, name):
        _demand(name in ('dispy DispyNodeAvailInfo', ['dispy', 'DispyNodeAvailInfo']))
        self.push(_AvailInfo)

    def new_object(self, _):
        _demand(self.pop(2) == [_AvailInfo, ()])
        self.push(_AvailInfo())

    def build(self, _):
        state = self.stack.pop()
        _demand(type(state) is dict and type(self.stack[-1]) is _AvailInfo)
        self.stack[-1].update(state)

    def put(self, index):
        self.memo[index] = self.stack[-1]

    def get(self, index):
        self.push(self.memo[index])
        _demand(not isinstance(self.stack[-1], (dict, list, tuple)))  # else it is shared

    # What an opcode does to the reader, given the value that is written with it; the names are those of pickletools.
    STEPS = {name: step for names, step in {
        'NONE INT BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE': push,
        'BINSTRING SHORT_BINSTRING': byte_string,
        'NEWTRUE': lambda r, _: r.push(True), 'NEWFALSE': lambda r, _: r.push(False),
        'EMPTY_DICT': lambda r, _: r.push({}), 'EMPTY_LIST': lambda r, _: r.push([]), 'MARK': mark,
        'SETITEM': lambda r, _: r.set_items(r.pop(2)), 'SETITEMS': lambda r, _: r.set_items(r.pop_mark()),
        'APPEND': lambda r, _: r.extend(r.pop(1)), 'APPENDS': lambda r, _: r.extend(r.pop_mark()),
        'EMPTY_TUPLE': lambda r, _: r.push(()), 'TUPLE': lambda r, _: r.push(tuple(r.pop_mark())),
        'TUPLE1': lambda r, _: r.push(tuple(r.pop(1))), 'TUPLE2': lambda r, _: r.push(tuple(r.pop(2))),
        'TUPLE3': lambda r, _: r.push(tuple(r.pop(3))),
        'GLOBAL': push_class, 'STACK_GLOBAL': lambda r, _: r.push_class(r.pop(2)), 'NEWOBJ': new_object, 'BUILD': build,
        'BINPUT LONG_BINPUT': put, 'MEMOIZE': lambda r, _: r.put(len(r.memo)), 'BINGET LONG_BINGET': get,
        'FRAME STOP': lambda r, _: None,
    }.items() for name in names.split()}


def _demand_plain(value, depth=MAX_DEPTH):
    """WireError for containers that are deeper within each other, longer integers, and the class, which is no value."""
    if isinstance(value, (dict, list, tuple)):
        _demand(depth)
        for inner in value.values() if isinstance(value, dict) else value:
            _demand_plain(inner, depth - 1)
    _demand(value is not _AvailInfo and not (type(value) is int and value.bit_length() >= 8 * MAX_INT_BYTES))


# A node's reply in the one order in which all releases write it from Python 3.6 on: reading each of its opcodes would
# add a third to the CPU of a poll.  What may follow is told by the next byte, so a hostile reply is given up in one pass.
_SIZED = [re.escape(bytes([size])) + b'.{%d}' % size for size in range(64)]  # a text, or an integer, after its size
_SCALAR = b'[N\x88\x89]|K.|M..|J.{4}|G.{8}|\x8a(?:%b)|\x8c(?:%b)' % (
    b'|'.join(_SIZED[:MAX_INT_BYTES]), b'|'.join(_SIZED))


def _items(keys):
    """The pattern of these keys, each with a scalar; lengths of keys are no special characters."""
    return b''.join(b'\x8c%c%b\x94?(?P<%b>%b)\x94?' % (len(key), key, key, _SCALAR) for key in keys.split())


_REPLY = re.compile(
    b'\x80[\x04\x05]\x95.{8}}\x94?[(]%b\x8c\navail_info\x94?'
    b'(?:N|\x8c\x05dispy\x94?\x8c\x12DispyNodeAvailInfo\x94?\x93\x94?[)]\x81\x94?}\x94?[(]%bub)%bu[.]' % (
        _items(b'busy serve clients_done jobs_done cpu_time scheduler_ip'), _items(b'cpu memory disk swap'),
        _items(b'name service_start service_stop service_end cpus max_cpus')), re.DOTALL)


def _read_reply(data):
    """The value of a reply in the very form in which nodes write it, else None.  ValueError for text that is none."""
    match = _REPLY.fullmatch(data)
    if match is None:
        return None
    # These are scalars alone: all that pickle can do with them is make a tuple.
    told = dict(zip(_REPLY.groupindex, pickle.loads(b'\x80\x04(%bt.' % b''.join(match.groups(b'N')))))
    available = {key: told.pop(key) for key in AVAILABLE}
    return dict(told, avail_info=available if match.group('cpu') else None)


def read_value(data):
    """The plain value in a pickle that came from the network; WireError for anything else.

    Bounded: MAX_MESSAGE bytes, MAX_OPCODES opcodes, MAX_DEPTH containers deep, integers of MAX_INT_BYTES.
    """
    _demand(len(data) <= MAX_MESSAGE, 'message of %d bytes' % len(data))
    try:
        return _read_reply(data) or _ValueReader().read(data)
    except (LookupError, TypeError, ValueError, Warning) as error:  # Warning: pickletools' of an escape sequence
        raise WireError('no pickle of plain values (%s)' % type(error).__name__)


def read_info(reply):
    """A node's reply to NODE_INFO: its sign (str) when the auth code opened nothing, else an Info.

    Every field is checked; what is not sane is None.  Nodes send how many CPUs are free.
    """
    if re.fullmatch(b'[0-9a-f]{40}', reply):
        return reply.decode('ascii')
    told = read_value(reply)
    _demand(isinstance(told, dict) and 'busy' in told and 'cpus' in told, 'a reply that is no node information')
    free, busy = _integer(told['cpus'], -MAX_CPUS, MAX_CPUS), _cpus(told['busy'])
    told['cpus'] = None if free is None or busy is None else max(0, free + busy)
    available = told.get('avail_info')
    checked = (tuple([check(available.get(key)) for key, check in AVAILABLE.items()]) if isinstance(available, dict)
               else None)
    return Info(checked, *[check(told.get(key)) for key, check in _CHECKS.items()])


# An announcement (PING, NODE_INFO or TERMINATED): what a node says of itself without being opened.
#   {'ip_addr': '10.0.0.17', 'port': 9701, 'sign': '3f…', 'version': '4.15.2'}
Announcement = collections.namedtuple('Announcement', 'tag ip_addr port sign version')


def read_announcement(message):
    """PING, NODE_INFO or TERMINATED as an Announcement; None when it is some other message (clients send several)."""
    tag, colon, data = message.partition(b':')
    if not colon or tag not in (b'PING', b'NODE_INFO', b'TERMINATED'):
        return None
    value = read_value(data)
    _demand(isinstance(value, dict), 'an announcement that is no dict')
    port, sign, version = _integer(value.get('port'), 1, 65535), value.get('sign'), value.get('version')
    if port is None or not isinstance(sign, str) or not SIGN.match(sign):
        return None  # an admin's or a client's own message
    return Announcement(tag.decode('ascii'), _text(value.get('ip_addr'), 64), port, sign,
                        version if isinstance(version, str) and RELEASE.match(version) else None)


REFUSED = 'refused'      # the node understood, and said no
NOT_ADMIN = 'not admin'  # the node has no admin secret, so that controls mean nothing to it
CONTROLLED = ('cpus', 'serve', 'service_start', 'service_stop', 'service_end')


def read_control(reply):
    """A node's reply to a control: dict of the values now in force, REFUSED, or NOT_ADMIN."""
    if not reply or reply.startswith(b'NAK'):
        return NOT_ADMIN
    value = read_value(reply)
    if value == -1:
        return REFUSED
    _demand(isinstance(value, dict), 'a reply that answers no control')
    kept = {key: _CHECKS[key](value[key]) for key in CONTROLLED if key in value}
    return {key: now for key, now in kept.items() if now is not None or value[key] in (None, 0)}


# ---------------------------------------------------------------------------------------------------------------------
# Addresses and sockets
# ---------------------------------------------------------------------------------------------------------------------

def canonical(address, scope=0):
    """One spelling for each IP address: `::ffff:10.0.0.1` is 10.0.0.1, a link-local address names its interface, whose
    index may be given as `scope`.  ValueError."""
    text, _, zone = str(address).partition('%')
    if re.search(r'(^|[.:])0[0-9]+\.|\.0[0-9]+\Z', text):  # octal to some programs, decimal to others
        raise ValueError('%s: a leading zero in an IPv4 address' % printable(address))
    parsed = ipaddress.ip_address(text)
    parsed = getattr(parsed, 'ipv4_mapped', None) or parsed
    if parsed.version == 4 or not parsed.is_link_local:
        return str(parsed)
    try:
        if zone.isdigit():
            scope, zone = int(zone), ''
        zone = zone or (socket.if_indextoname(scope) if scope else '')
        return '%s%%%s' % (parsed, zone) if zone else str(parsed)
    except (OSError, OverflowError):
        raise ValueError('%s: there is no such interface' % printable(address))


def peer_address(sockaddr):
    """The canonical address in what accept() and recvfrom() return."""
    return canonical(sockaddr[0], *sockaddr[3:])


def format_id(address, port):
    """A node's id: ADDRESS:PORT, or [ADDRESS]:PORT for IPv6."""
    return ('[%s]:%d' if ':' in address else '%s:%d') % (address, port)


def split_id(node_id):
    """(address, port) of an id that format_id() made."""
    address, _, port = node_id.rpartition(':')
    return address.strip('[]'), int(port)


def split_host_port(text):
    """(host, port or None) of HOST, HOST:PORT, IPv6, or [IPv6]:PORT.  ValueError with a sentence when it is neither."""
    text = text.strip()
    match = re.match(r'\[([^\]]*)\](?::([0-9]{1,6}))?\Z', text) or re.match(r'([^:\[\]]*)(?::([0-9]{1,6}))?\Z', text)
    host, port = match.groups() if match else (text, None)
    check_host(host)
    return host, port and check_port(int(port))


def check_host(host, needs_interface=True):
    """`host` when it can be a host name or an IP address, else ValueError.  To be reached, a link-local address must
    name its interface."""
    if re.match(r'[0-9.]+\Z', host) or ':' in host:
        try:
            address = canonical(host)
        except ValueError:
            raise ValueError('%s is no IP address' % printable(host)[:80])
        if address == BROADCAST or ipaddress.ip_address(address.partition('%')[0]).is_multicast:
            raise ValueError('%s is not the address of one machine' % address)
        problem = needs_interface and lacks_interface(address)
        if problem:
            raise ValueError(problem)
        return address
    if not re.match(r'(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*\.?\Z', host):
        raise ValueError('%s is neither a host name nor an IP address' % (printable(host)[:80] or 'an empty text'))
    return host


def check_port(port):
    """`port` when a TCP port can have this number, else ValueError."""
    if not 1 <= port <= 65535:
        raise ValueError('port %d is not between 1 and 65535' % port)
    return port


def is_unscoped(address):
    """Whether a canonical address is a link-local one that does not name its interface."""
    return '%' not in address and bool(re.match(r'fe[89ab][0-9a-f]:', address))


def lacks_interface(address):
    """What is wrong with a canonical link-local address that does not name its interface; '' for all others."""
    if not is_unscoped(address):
        return ''
    names = sorted({interface.address.partition('%')[2] for interface in list_interfaces()} - {''})[:8]
    return '%s is a link-local address: add its interface, as in %s%%%s%s' % (
        address, address, names[0] if names else 'eth0', ' (or %s)' % ', '.join(names[1:]) if names[1:] else '')


# Of getaddrinfo(): there is no such name, or it has no address.  All else means that nobody could tell.
UNKNOWN_NAME = {getattr(socket, name, None) for name in ('EAI_NONAME', 'EAI_NODATA', 'EAI_ADDRFAMILY')}


def resolve(host):
    """All addresses of a host name or an IP address, canonical, IPv4 first.  NodeError when there is none."""
    if is_address(host):
        socket_address(canonical(host), 0)  # NodeError
        return [canonical(host)]
    if is_localhost(host):
        return ['127.0.0.1', '::1'] if is_bindable('::1') else ['127.0.0.1']
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a part that is too long
        unknown = isinstance(error, UnicodeError) or error.errno in UNKNOWN_NAME
        raise NodeError((
            'The name %s is unknown. Check its spelling, enter it in DNS or /etc/hosts, or give an IP address.' if unknown
            else 'No name server answers for %s. Check /etc/resolv.conf and the network of this machine, or give an IP '
                 'address.') % printable(host))
    families = socket.AF_INET, socket.AF_INET6
    return sorted(dict.fromkeys(peer_address(entry[4]) for entry in found if entry[0] in families), key=family_of)


def is_localhost(host):
    """Whether this name is loopback by definition (RFC 6761, section 6.3), whatever resolver there is."""
    return ('.' + host.lower().rstrip('.')).endswith('.localhost')


def is_loopback(address):
    """Whether this canonical address is this machine's loopback."""
    return address == '::1' or address.startswith('127.')


def family_of(address):
    """The socket family of a canonical address."""
    return socket.AF_INET6 if ':' in address else socket.AF_INET


def socket_address(address, port):
    """What connect() and bind() take for a canonical address; a link-local one names its interface.  NodeError."""
    if ':' not in address:
        return address, port
    problem = lacks_interface(address)
    if problem:
        raise NodeError('%s.' % problem)
    address, _, zone = address.partition('%')
    try:
        return address, port, 0, socket.if_nametoindex(zone) if zone else 0
    except (OSError, ValueError):  # ValueError: a zero byte
        names = ', '.join(name for _, name in socket.if_nameindex()[:8])
        raise NodeError('This machine has no interface %s; it has %s.' % (printable(zone), names or 'none'))


# An address of this machine; where the system does not tell more of it, that alone.
Interface = collections.namedtuple('Interface', 'address index network broadcast loopback')
Interface.__new__.__defaults__ = 0, None, None, False
LOOPBACK = Interface('127.0.0.1', broadcast='127.255.255.255', loopback=True)

# rtnetlink(7) and netdevice(7) of Linux
_GET_LINKS, _GET_ADDRESSES, _DUMP = 18, 22, 0x301
_DONE, _ERROR = 3, 2
_ADDRESS, _LOCAL, _BROADCAST = 1, 2, 4
_UP, _HAS_BROADCAST, _LOOPBACK = 0x1, 0x2, 0x8
_TENTATIVE = 0x40  # an IPv6 address that is still being checked for duplicates cannot be bound


def _kernel_table(kind, head_size):
    """Yield (fixed head, {attribute: bytes}) of each entry of a table that the Linux kernel keeps."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(2)
        sock.bind((0, 0))
        sock.send(struct.pack('=IHHII', 16 + head_size, kind, _DUMP, 1, 0) + bytes(head_size))
        while True:
            for answer, entry in _parts(sock.recv(1 << 16), '=IHHII'):
                if answer in (_DONE, _ERROR):
                    return
                yield entry[:head_size], dict(_parts(entry[head_size:], '=HH'))


def _parts(data, head):
    """Yield (kind, content) of each part of what the kernel sends.  Its head begins with the size of all, and the kind."""
    least = struct.calcsize(head)
    while len(data) >= least:
        size, kind = struct.unpack_from(head, data)[:2]
        yield kind, data[least:size]
        data = data[max(least, (size + 3) & ~3):]


def _kernel_interfaces():
    flags_of = dict(struct.unpack_from('=iI', head, 4) for head, _ in _kernel_table(_GET_LINKS, 16))
    for head, found in _kernel_table(_GET_ADDRESSES, 8):
        family, prefix, state, _, index = struct.unpack('=BBBBi', head)
        raw, flags = found.get(_LOCAL) or found.get(_ADDRESS), flags_of.get(index, 0)
        if family in (socket.AF_INET, socket.AF_INET6) and raw and flags & _UP and not state & _TENTATIVE:
            address, broadcast = socket.inet_ntop(family, raw), None
            network = ipaddress.ip_network('%s/%d' % (address, prefix), strict=False)
            if family == socket.AF_INET and flags & (_HAS_BROADCAST | _LOOPBACK):
                told = found.get(_BROADCAST) or (network.broadcast_address.packed if prefix <= 30 else None)
                broadcast = told and socket.inet_ntop(family, told)
            yield Interface(canonical(address, index), index, network, broadcast, bool(flags & _LOOPBACK))


def list_interfaces():
    """The addresses of all interfaces that are up, as Interface records; none where the kernel cannot be asked."""
    try:
        return list(_kernel_interfaces())
    except (OSError, AttributeError, ValueError, struct.error):  # ValueError: an interface has just gone
        return []


def default_interfaces():
    """The addresses of the default host name; if that is only loopback (127.0.1.1), the one that routes lead out of."""
    addresses = []
    with contextlib.suppress(NodeError):
        addresses = [a for a in resolve(socket.gethostname()) if not is_loopback(a)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(('192.0.2.1', 9))  # an address for documentation; connecting a datagram socket sends nothing
        addresses = addresses or [sock.getsockname()[0]]
    return [Interface(address) for address in addresses]


def search_sources(hosts, known):
    """From which of the `known` interfaces nodes are asked: those of `hosts` (addresses), else all; loopback where there
    is no other."""
    if hosts:
        found = {interface.address: interface for interface in known}
        return [found.get(host) or (LOOPBACK._replace(address=host) if is_loopback(host) else Interface(host))
                for host in hosts]
    chosen = {}
    # a link-local address serves only where there is no other
    for interface in sorted(known, key=lambda interface: '%' in interface.address):
        if not interface.loopback:
            # one IPv6 address for each interface: the group is the same for all
            chosen.setdefault(interface.index if ':' in interface.address else interface.address, interface)
    return list(chosen.values()) or [LOOPBACK]


def search_targets(interface, multicast):
    """Where nodes are asked from an interface; with `multicast`, IPv4 ones by their group."""
    if ':' in interface.address:
        return [GROUP_V6]
    # nodes with netifaces listen at the interface's broadcast address alone, those without at the general one
    return [GROUP_V4] if multicast else list(filter(None, [interface.broadcast, BROADCAST]))


def open_socket(kind, address, port):
    """A bound, non-blocking socket that listens (TCP) or hears (UDP).  OSError, NodeError."""
    family = family_of(address)
    with contextlib.ExitStack() as unless_done:
        sock = unless_done.enter_context(socket.socket(family, kind))
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # TCP: connections of an earlier run are not in the way.  UDP: a dispy client must see the port taken.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
        sock.bind(socket_address(address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(4096)  # all nodes of a segment answer a discovery within a second; the kernel may allow less
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)  # a thousand nodes may start at once
        sock.setblocking(False)
        unless_done.pop_all()
        return sock


def tls_contexts(certfile, keyfile):
    """(client side, server side) contexts for nodes that were started with the same files; StartError when unusable.

    As dispy does it: the certificate is the only authority that is trusted, and names in it are not looked at.
    """
    try:
        for name in filter(None, (certfile, keyfile)):
            if not stat.S_ISREG(os.stat(name).st_mode):  # OpenSSL would read a device or a pipe for ever
                raise ValueError('%s is no regular file' % name)
            with open(name, 'rb'):
                pass  # errors of the ssl module name no file
        client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client.check_hostname = False
        client.verify_mode = ssl.CERT_REQUIRED
        client.load_verify_locations(certfile)
        server.load_cert_chain(certfile, keyfile or None, password=_no_password)
        return client, server
    except (OSError, ValueError) as error:
        files = '--certfile %s%s' % (certfile, ' and --keyfile %s' % keyfile if keyfile else '')
        raise StartError('%s cannot be used: %s' % (files, system_error(error)))


def _no_password():
    raise ValueError('the key is encrypted; dispy needs it without a password')


def allow_many_files(wanted=4096):
    """Raise the limit of open files as far as it may be, and return it: each exchange needs one.  StartError."""
    if resource is None:
        return 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    best = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (best, hard))
        soft = best
    if soft < LEAST_FILES:
        raise StartError('dispyadmin needs %d open files, and the limit is %d. %s' % (LEAST_FILES, soft, _RAISE_FILES))
    return soft


class Wakeup:
    """Wakes a thread that sleeps in a selector: that one registers `reader` and calls clear(); any calls set()."""

    def __init__(self):
        self.reader, self.writer = socket.socketpair()
        self.reader.setblocking(False)
        self.writer.setblocking(False)

    def set(self):
        with contextlib.suppress(OSError):  # full: the sleeper will wake anyway; closed: it is gone
            self.writer.send(b'.')

    def clear(self):
        with contextlib.suppress(OSError):
            while self.reader.recv(4096):
                pass

    def close(self):
        self.reader.close()
        self.writer.close()


class Worker:
    """A thread with a name that calls turn() again and again until end(); an unexpected error in it is logged, and goes
    by."""

    name = 'worker'

    def __init__(self):
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._reported = {}  # level -> (what was logged last, monotonic time)

    def start(self):
        try:
            self._thread.start()
        except RuntimeError:
            raise StartError('No thread can be started. Raise the limit of processes: "ulimit -u" in the shell, or '
                             'TasksMax= in the unit of systemd.')

    def end(self):
        """Ask the thread to end."""
        self.stopping.set()
        self.wake()

    def is_alive(self):
        """Whether the thread runs."""
        return self._thread.is_alive()

    def join(self, deadline):
        """Wait until the thread has ended, or until this monotonic time: it may hang in a look-up of a name."""
        if self.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def wake(self):
        """Make turn() return soon.  Any thread."""

    def finish(self):
        """Called on the thread when it ends: give up sockets here."""

    def _run(self):
        while not self.stopping.is_set():
            try:
                self.turn()
            except Exception as error:
                self.report(error)
                self.stopping.wait(0.1)  # an error that comes back at once must not eat the machine
        self.finish()

    def report_once(self, problem, level=logging.WARNING, error=None):
        """Log what the system refuses, unless it was the same less than a minute ago."""
        last, when = self._reported.get(level, ('', 0.0))
        if problem != last or time.monotonic() - when > 60:
            self._reported[level] = problem, time.monotonic()
            logger.log(level, '%s', problem, exc_info=error)

    def report(self, error):
        """Log an unexpected error in the same way."""
        self.report_once('%s goes on after an unexpected error: %s' % (self.name, printable(repr(error))),
                         logging.ERROR, error)


class SocketWorker(Worker):
    """A Worker that sleeps until one of its sockets is ready; each is registered with what is to be called then."""

    def __init__(self):
        super().__init__()
        self.selector = selectors.DefaultSelector()
        self._wakeup = Wakeup()
        self.selector.register(self._wakeup.reader, selectors.EVENT_READ, self.woken)

    def wake(self):
        self._wakeup.set()

    def woken(self):
        """Called on this thread after wake()."""
        self._wakeup.clear()

    def sleep(self, seconds=None):
        """Wait for sockets, so many seconds at most, and do what those want that are ready."""
        for key, _ in self.selector.select(seconds):
            key.data()

    def advance(self, connection):
        """Let a NonblockingConnection go on until it has to wait.  When all is done, or an error (OSError, NodeError) ends
        it, over(connection, error or None) of the subclass is called."""
        error = None
        try:
            events = next(connection.moves, 0)
        except (OSError, NodeError) as problem:
            events, error = 0, problem
        connection.watch(self.selector, events, functools.partial(self.advance, connection))
        if not events:
            self.over(connection, error)

    def finish(self):
        self.selector.close()
        self._wakeup.close()


# ---------------------------------------------------------------------------------------------------------------------
# Settings: what an administrator may set at a node
# ---------------------------------------------------------------------------------------------------------------------
# Whatever is said about a setting is said here: what is sent, what the node will have, what else that changes,
# how the outcome reads, and when a node has drifted from it.  Knows no socket and no table.

CLOCK = re.compile(r'([01]?[0-9]|2[0-3]):[0-5][0-9]\Z')
DAY = 86400                    # seconds
SERVICE_TIMES = ('start', 'stop', 'end')
TIME_KEYS = tuple('service_' + control for control in SERVICE_TIMES)
SETTING_KEYS = ('cpus', 'serve') + TIME_KEYS
ENDED, DIED, IDLE = 'ended', 'died', 'idle'  # what becomes of a dispynode's schedule

Times = collections.namedtuple('Times', SERVICE_TIMES)  # Unix times of the node's clock, or None


class NodeClock(collections.namedtuple('NodeClock', 'zone ahead')):
    """A node's clock: seconds ahead of UTC of its zone, and seconds ahead of our clock; None where not known.

    What a node answers to HH:MM tells its zone, what it answers to "now" tells its clock.
    """

    __slots__ = ()

    def now(self, ours):
        """The node's Unix time when ours is `ours`."""
        return ours + (self.ahead or 0)

    def is_own_zone(self):
        """Whether the node's zone is this machine's, as far as is known: then summer time is the same as well."""
        year = time.time()
        return self.zone in {own_zone(year + days * DAY) for days in (0, 91, 182, 273)}

    def local(self, seconds):
        """The datetime that the node's clock shows at a Unix time; in our zone where its own is not known."""
        ahead = own_zone(seconds) if self.zone is None or self.is_own_zone() else self.zone
        return datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds + ahead)

    def clock(self, seconds):
        """A Unix time as the HH:MM that the node's clock shows."""
        return self.local(seconds).strftime('%H:%M')

    def moment(self, seconds, ours, today=''):
        """A Unix time of the node in words: with its day, when that is not today there."""
        if seconds is None:
            return 'none'
        at = self.local(seconds)
        apart = (at.date() - self.local(self.now(ours)).date()).days
        day = {0: today, 1: 'tomorrow', -1: 'yesterday'}.get(apart, '%a' if abs(apart) < 7 else '%Y-%m-%d')
        return at.strftime(day + ' %H:%M').strip()

    def today(self, text, ours):
        """The Unix time that dispynode makes of HH:MM: today's by its own clock, with the seconds of now."""
        now, (hour, minute) = self.now(ours), map(int, text.split(':'))
        shown = self.local(now)
        return now + (shown.replace(hour=hour, minute=minute) - shown).total_seconds()


OWN_CLOCK = NodeClock(None, None)


def zone_of(clock, seconds):
    """Seconds that a clock is ahead of UTC which shows HH:MM at this Unix time: -12 to +14 hours, in quarters."""
    hours, _, minutes = clock.partition(':')
    ahead = round((int(hours) * 3600 + int(minutes) * 60 - seconds % DAY) / 900) * 900 % DAY
    return ahead if ahead <= 14 * 3600 else ahead - DAY


def own_zone(seconds):
    """How many seconds this machine's clock is ahead of UTC at this Unix time."""
    return time.localtime(seconds).tm_gmtoff


def check_whole(field, value, low, high, unit):
    """InputError unless `value` is a whole number within bounds."""
    if type(value) is not int or not low <= value <= high:
        raise InputError('%s: must be a whole number from %d to %d%s' % (field, low, high, unit and ' ' + unit))


# --- what dispynode makes of service times: read from dispy 4.11.0 to 4.15.2, and checked at real nodes ---

def times_of(info):
    """The Times of an Info."""
    return Times(info.service_start, info.service_stop, info.service_end)


def change_times(times, control, at):
    """The Times after dispynode has taken a control (`at`: Unix time, or None to clear); None when it refuses."""
    start, stop, end = times
    if at is not None:
        if control == 'start' and any(other is not None and other < at for other in (stop, end)):
            at -= DAY
        elif control == 'stop':
            at += DAY if start is not None and start > at else 0
            if end is not None and end < at:
                return None
        elif control == 'end' and any(other is not None and other > at for other in (start, stop)):
            at += DAY
    return times._replace(**{control: at})


def run_schedule(times, now, is_used):
    """(Times, ENDED, DIED or IDLE): what dispynode's schedule makes of its times at once, before it sleeps.

    A time of the next minute counts as come.  At End the program ends; a Stop that comes before any client has
    used the node ends the schedule by an exception; when all times are over, all are moved by a day.
    """
    for _ in range(1000):
        is_later = Times(*[at is not None and at > now + 60 for at in times])
        if is_later.start or is_later.stop:
            break
        if times.stop is not None and not is_used:
            return times, DIED
        if times.end is not None and not is_later.end:
            return times, ENDED
        if is_later.end or times.start is times.stop is None:
            break
        times = Times(*[at if at is None else at + DAY for at in times])
    return times, IDLE


def accepts_jobs(times, now):
    """Whether dispynode accepts jobs by its service times: Stop counts, and End only where there is no Stop."""
    closes = times.end if times.stop is None else times.stop
    return not (times.start is not None and times.start >= now) and not (closes is not None and closes <= now)


def has_lost_schedule(info, now):
    """Whether Stop has come while no client had ever used the node: its times do nothing any more, End neither."""
    is_used = info.clients_done or info.scheduler_ip
    return info.service_stop is not None and info.service_stop <= now and not is_used


def foresee_times(info, controls, now):
    """(Times, ENDED, DIED or IDLE) after these [(control, Unix time or None)], at node time `now`; (None, IDLE)
    when one of them is refused."""
    times, fate = times_of(info), DIED if has_lost_schedule(info, now) else IDLE
    for control, at in controls:
        times = change_times(times, control, at)
        if times is None:
            return None, IDLE
        if fate == IDLE:
            times, fate = run_schedule(times, now, info.clients_done or info.scheduler_ip)
        if fate == ENDED:
            break
    return times, fate


def same_minute(one, other):
    """Whether two times are the same, to the minute; None is the same as None."""
    return one is other if one is None or other is None else abs(one - other) < 60


def same_time(one, other):
    """Whether two times are the same time of the day, to the minute; None is the same as None."""
    if one is None or other is None:
        return one is other
    return min((one - other) % DAY, (other - one) % DAY) <= 90


def order_times(info, wanted, now):
    """The [(control, Unix time or None)] that bring a node to these `wanted` Times of today without ending
    dispynode; None when nothing does.

    dispynode moves times by a day, refuses, or ends at once, as the order will have it: all orders are tried, each
    with none or all of the times cleared first, which are 12 at most.  Best is one after which the schedule lives,
    the node accepts jobs now as the times say, and little is sent.
    """
    shown, found, accepts = times_of(info), [], accepts_jobs(wanted, now)
    closes = wanted.end if wanted.stop is None else wanted.stop
    if None not in (wanted.start, closes) and closes <= wanted.start:  # it is open over midnight, each day anew
        accepts = not closes <= now < wanted.start
    stands_still = any(at is not None and at < now - DAY for at in shown)
    differing = [control for control, has, at in zip(SERVICE_TIMES, shown, wanted)
                 if stands_still and at is not None or not same_time(has, at)]
    cleared = [(control, None) for control, has in zip(SERVICE_TIMES, shown) if has is not None]
    everything = [control for control, at in zip(SERVICE_TIMES, wanted) if at is not None]
    for first, controls in (([], differing), (cleared, everything)):
        for order in itertools.permutations(controls):
            sent = first + [(control, getattr(wanted, control)) for control in order]
            times, fate = foresee_times(info, sent, now)
            if fate != ENDED and times is not None and all(map(same_time, times, wanted)):
                found.append(((fate != IDLE, accepts_jobs(times, now) != accepts, len(sent)), len(found), sent))
    return min(found)[2] if found else None


# --- the settings ---

class Refusal(Error):
    """Nothing is done at a node; the sentence says why."""


class Seen(collections.namedtuple('Seen', 'id info clock ours desired')):
    """A node at one moment: its Info and NodeClock, our Unix time, and its desired record (see in_force)."""

    __slots__ = ()

    @property
    def now(self):
        """The node's Unix time."""
        return self.clock.now(self.ours)

    @property
    def times(self):
        """Its Times."""
        return times_of(self.info)

    def moment(self, seconds, today=''):
        """A Unix time of the node in words (see NodeClock.moment)."""
        return self.clock.moment(seconds, self.ours, today)


# What will be at a node: the value that it will have, a sentence, whether nothing will change, and whether jobs
# are killed or dispynode exits.
Foresight = collections.namedtuple('Foresight', 'after message same danger')
Foresight.__new__.__defaults__ = (False, False)


class Setting:
    """One setting of nodes.  Made with values that cannot be, it raises InputError.

    Each kind has foresee(seen), the Foresight of it at a node that is Seen, or a Refusal; describe(before, seen),
    a sentence on what is in force at a node that showed the Info `before`; and drift(seen), a sentence when the
    node is not as it was set, or None.
    """

    __slots__ = ('title', 'asked', 'operation', 'value', '_message')  # each node has some

    action = key = ''          # what the HTTP interface calls it, and the value of a node that it sets
    time = None                # of a service time: HH:MM, or "now"
    refusal = 'Rejected: dispynode does not take this value.'
    ends_now = False           # whether dispynode shall exit at once: that is done, and not remembered

    def __init__(self, title, tag, fields, **asked):
        self.title = title     # what is set, in a few words
        self.asked = asked     # the fields of the HTTP interface
        self.operation = self.value = None  # number of the plan that it was set by, and what the node answered
        self._message = tag, fields

    def message(self):
        """The bytes that are sent."""
        return write_message(*self._message)

    def of(self, operation, value=None):
        """This setting, as set by this operation; `value` is what the node answered."""
        setting = copy.copy(self)
        setting.operation, setting.value = operation, value
        return setting

    def steps(self, seen):
        """The settings that are sent to set this one, in order, this one last."""
        return [self]

    def refuse(self, info):
        """A sentence on why the node refused."""
        return self.refusal


class SetCpus(Setting):
    """Let dispy use so many CPUs of a node: n of them, all but n (negative), or "all"."""

    __slots__ = ('cpus',)
    action = key = 'cpus'

    def __init__(self, cpus):
        if cpus != 'all':
            check_whole('cpus', cpus, -MAX_CPUS, MAX_CPUS, 'CPUs, or "all"')
        title = ('Set all CPUs' if cpus == 'all' else 'Set CPUs to %d' % cpus if cpus >= 0 else
                 'Leave %s unused' % count_of(-cpus, 'CPU'))
        super().__init__(title, b'SET_CPUS:', {'cpus': None if cpus == 'all' else cpus}, cpus=cpus)
        self.cpus = cpus

    def target(self, info):
        """How many CPUs that is at this node; None when it is not known."""
        if self.cpus != 'all' and self.cpus >= 0:
            return self.cpus
        return None if info.max_cpus is None else info.max_cpus + (0 if self.cpus == 'all' else self.cpus)

    def fits(self, info):
        """Whether the node has so many CPUs."""
        return info.max_cpus is not None and 0 <= self.target(info) <= info.max_cpus

    def foresee(self, seen):
        had, after = seen.info.cpus, self.target(seen.info)
        if not self.fits(seen.info):
            raise Refusal(self.refuse(seen.info))
        before = '' if had == after else '%s \u2192 ' % ('?' if had is None else had)
        return Foresight(after, '%s%s.' % (before, count_of(after, 'CPU')), had == after)

    def describe(self, before, seen):
        return '%s of %s CPUs assigned to dispy.' % (seen.info.cpus, seen.info.max_cpus)

    def refuse(self, info):
        has = 'an unknown number of' if info.max_cpus is None else info.max_cpus
        asked = self.cpus if self.cpus == 'all' or self.cpus >= 0 else 'all but %d' % -self.cpus
        return 'Rejected: has %s CPUs; %s asked.' % (has, asked)

    def drift(self, seen):
        target = self.target(seen.info)
        if target is None or seen.info.cpus in (None, max(0, target)):
            return None
        return 'CPUs: %d, should be %d.' % (seen.info.cpus, max(0, target))


class SetServiceTime(Setting):
    """Set when a node takes jobs: `control` is start, stop or end; `time` HH:MM of its clock, now, or None."""

    __slots__ = ('control', 'time', 'key', 'what', 'ends_now', 'refusal')
    action = 'service_time'

    def __init__(self, control, time):
        if not isinstance(control, str) or control not in SERVICE_TIMES:
            raise InputError('control: must be "start", "stop" or "end"')
        if time is not None and not (isinstance(time, str) and (time == 'now' or CLOCK.match(time))):
            raise InputError('time: must be "HH:MM" between 00:00 and 23:59, "now", or null to clear it')
        what = control.capitalize()
        super().__init__('Clear %s' % what if time is None else 'Set %s to %s' % (what, time), b'SERVICE_TIME:',
                         {'control': control + '_time', 'time': {None: '0', 'now': None}.get(time, time)},
                         control=control, time=time)
        self.control, self.time, self.key, self.what = control, time, 'service_' + control, what
        self.ends_now = (control, time) == ('end', 'now')
        self.refusal = Setting.refusal if control != 'stop' else (
            'Rejected: Stop would come after End. Set End later, or clear it, first.')

    def unix(self, seen):
        """The Unix time that dispynode makes of it, before it moves it by a day; None to clear it."""
        if self.time is None:
            return None
        return seen.now if self.time == 'now' else seen.clock.today(self.time, seen.ours)

    def steps(self, seen):
        """With "end now", a Start or Stop that is later would move End to tomorrow: both are cleared first, as
        nothing is left of them when dispynode has ended.  Start first: without a Stop, it would be moved too."""
        times = dict(zip(SERVICE_TIMES[:2], seen.times))
        is_moved = self.ends_now and any(at is not None and at > seen.now for at in times.values())
        cleared = [control for control, at in times.items() if is_moved and at is not None]
        return [SetServiceTime(control, None) for control in cleared] + [self]

    def foresee(self, seen):
        times, fate = foresee_times(seen.info, [(s.control, s.unix(seen)) for s in self.steps(seen)], seen.now)
        if times is None:
            raise Refusal(self.refuse(seen.info))
        after = getattr(times, self.control)
        if self.time is not None:
            after = self.time if same_time(after, self.unix(seen)) else seen.clock.clock(after)
        return Foresight(after, self._say(seen.times, times, fate, seen), all(map(same_minute, times, seen.times)),
                         fate == ENDED or self.control == 'end' and self.time is not None)

    def describe(self, before, seen):
        fate = DIED if has_lost_schedule(seen.info, seen.now) else IDLE
        return self._say(times_of(before), seen.times, fate, seen)

    def _say(self, before, after, fate, seen):
        """What was changed of the three times, and what follows from it."""
        if fate == ENDED:
            return 'Running jobs are killed and dispynode exits now; restart it on the node.'
        changes = [control.capitalize() + ': %s \u2192 %s' % (seen.moment(old, 'today'), seen.moment(new, 'today'))
                   for control, old, new in zip(SERVICE_TIMES, before, after) if not same_minute(old, new)]
        same = '%s: %s' % (self.what, seen.moment(getattr(after, self.control), 'today'))
        return '%s (node time). %s' % ('; '.join(changes) or same, self._consequence(after, fate, seen))

    @staticmethod
    def _consequence(times, fate, seen):
        if fate == DIED:
            return LOST_SCHEDULE
        text = 'Accepts no jobs.'
        if times.start is not None and times.start >= seen.now:
            text = 'Accepts jobs from %s.' % seen.moment(times.start)
        elif accepts_jobs(times, seen.now):
            text = 'Accepts jobs.'
            if times.stop is not None and times.start is None:
                text += ' After Stop, dispynode moves it to the next day and accepts jobs again; set Start too.'
        if times.end is not None:
            text += ' At End running jobs are killed and dispynode exits; restart it on the node.'
        return text

    def drift(self, seen):
        """A time that is off, or of a schedule that stands still.

        dispynode moves its times by 24 hours each day, so summer time moves them by an hour of its clock.  That is
        drift where the node's zone is ours; when the summer of another begins is not known: an hour is let be.
        """
        shown, clock = getattr(seen.info, self.key), seen.clock
        if None in (shown, self.time):
            is_off = shown is not self.time
        elif self.time == 'now':
            return None
        elif clock.zone is None:
            is_off = self.value is not None and not same_time(shown, self.value)
        else:
            ours = shown - (clock.ahead or 0)
            hours = (0,) if clock.is_own_zone() else (0, -3600, 3600)
            is_off = not any(same_time(shown, clock.today(self.time, ours) + hour) for hour in hours)
        if is_off:
            has = 'none' if shown is None else clock.clock(shown)
            return '%s: %s, should be %s.' % (self.what, has, self.time or 'cleared')
        # A dispynode whose schedule lives moves its times on to the next day when the last of them is over.
        last = max(filter(None, seen.times), default=None)
        if shown is not None and clock.local(last).date() < clock.local(seen.now).date():
            return '%s: the daily times stand still since %s.' % (self.what, seen.moment(last))
        return None


class SetClients(Setting):
    """How many more clients a node serves before its program ends: n, 0 for none, -1 without limit."""

    __slots__ = ('clients',)
    action, key = 'clients', 'serve'

    def __init__(self, clients):
        check_whole('clients', clients, -1, MAX_CLIENTS, 'clients; -1 is without limit')
        title = 'Accept no more clients' if clients == 0 else 'Set clients to %s' % self.text(clients)
        super().__init__(title, b'SERVE_CLIENTS:', {'serve': clients}, clients=clients)
        self.clients = clients

    def foresee(self, seen):
        same = seen.info.serve == self.clients
        before = '' if same else '%s \u2192 ' % self.text(seen.info.serve)
        return Foresight(self.clients, self._say(self.clients, before), same)

    def describe(self, before, seen):
        return self._say(seen.info.serve)

    def _say(self, clients, before=''):
        exits = ' After the last one dispynode exits; restart it on the node.' if (clients or 0) > 0 else ''
        return 'Clients: %s%s.%s' % (before, self.text(clients), exits)

    def drift(self, seen):
        serve = seen.info.serve
        if serve is None or serve == self.clients or 0 <= serve < self.clients:  # it counts down by itself
            return None
        return 'Clients: %s, should be %s.' % (self.text(serve), self.text(self.clients))

    @staticmethod
    def text(value):
        """A number of clients in words."""
        return 'unknown' if value is None else 'no limit' if value < 0 else str(value)


def count_of(number, noun):
    """A number and a noun, in the plural where that is needed."""
    return '%d %s%s' % (number, noun, '' if number == 1 else 's')


SETTINGS = {setting.action: setting for setting in (SetCpus, SetServiceTime, SetClients)}
RESTORE, END, STAY = THENS = ('restore', 'end', 'stay')
THEN_TEXTS = {RESTORE: 'When idle, it returns to service.', END: 'When idle, dispynode is stopped.',
              STAY: 'It stays out of service until it is returned.'}

# A node that is out of service, or on its way: since when (Unix time), what comes when it is idle (of THENS), why
# and by whom (texts), how many CPUs it had (None where not known), since when it is idle (or None), whether it is
# on its return, when dispynode was told to exit (or None), and the number of the operation that drained it.
Drain = collections.namedtuple('Drain', 'since then note by had idle returning ended operation')


# What administrators want of a node: {key of SETTING_KEYS: Setting, 'drain': Drain}, without what was never set.
# Such a desired record is never changed, but replaced.

def in_force(desired, info):
    """What should be in force at a node now, {key: Setting}: a drain means 0 CPUs, else the CPUs that were set;
    what was never set is left alone."""
    settings = {key: setting for key, setting in desired.items() if key != 'drain'}
    if 'drain' in desired:
        settings['cpus'] = returned_cpus(desired, info) if desired['drain'].returning else SetCpus(0)
    return settings


def returned_cpus(desired, info):
    """What a drained node gets back: the CPUs that are set, else those that it had; all, where that is not known,
    or where it has fewer now: its hardware may have changed while it was drained."""
    had = desired['drain'].had
    setting = desired.get('cpus') or SetCpus('all' if had is None else had)
    return setting if info.max_cpus is None or setting.fits(info) else SetCpus('all')


def differences(seen):
    """{key: sentence}: where a node is not as it should be now."""
    found = {key: setting.drift(seen) for key, setting in sorted(in_force(seen.desired, seen.info).items())}
    return {key: sentence for key, sentence in found.items() if sentence}


def is_same(one, other):
    """Whether two parts of a desired record were made by the same operation."""
    return one is other or None not in (one, other) and one.operation == other.operation is not None


def merged(desired, edit):
    """The desired record with this edit: {key: new value, or None for what is not wanted any more}."""
    return {key: value for key, value in dict(desired, **edit).items() if value is not None}


UNKNOWN_ZONE = ("Left out: End, as the node's time zone is not known yet and dispynode might exit at once. "
                'Set it by name where that is meant.')
ENDS_NOW = 'Left out: %s (node time) would stop dispynode now. Set it by name where that is meant.'


def with_all_times(keys):
    """These keys, and all times where one is among them: dispynode moves each as the others are."""
    return set(keys) if set(keys).isdisjoint(TIME_KEYS) else set(keys).union(TIME_KEYS)


def setting_back(key, value, clock):
    """The Setting that gives a node a value that it has shown."""
    if key in TIME_KEYS:
        return SetServiceTime(key[len('service_'):], value and clock.clock(value))
    return (SetCpus if key == 'cpus' else SetClients)(value)


def order_settings(settings, seen):
    """([settings to send], sentence on what is left out or None) that bring a node to these {key: Setting}, where
    times that are not among them stay: what would end dispynode is left out."""
    others, clock = [settings[key] for key in ('cpus', 'serve') if key in settings], seen.clock
    if settings.keys().isdisjoint(TIME_KEYS):
        return others, None
    times = [settings.get(key) or setting_back(key, at, clock) for key, at in zip(TIME_KEYS, seen.times)]
    sent, left_out = order_times(seen.info, Times(*[setting.unix(seen) for setting in times]), seen.now), None
    if sent is None:
        names = ', '.join('%s %s' % (each.what, each.time) for each in times if each.key in settings and each.time)
        return others, ENDS_NOW % names
    if clock.zone is None and any(control == 'end' and at for control, at in sent):
        # Another time's answer tells the zone, and this is called again.
        sent = [(control, at) for control, at in sent if control != 'end' or not at]
        left_out = None if any(at for _, at in sent) else UNKNOWN_ZONE
    return others + [setting_back('service_' + control, at, clock) for control, at in sent], left_out


# ---------------------------------------------------------------------------------------------------------------------
# Node: one record
# ---------------------------------------------------------------------------------------------------------------------

READY, STOPPED, LOCKED, UNREACHABLE = STATES = ('ready', 'stopped', 'locked', 'unreachable')

LOCKED_REASON = ("Locked: none of the known admin secrets matches. Enter this node's admin secret; if it has "
                 'none, or the same as its --secret, restart dispynode with an --admin_secret of its own.')
NO_ADMIN_REASON = ('The node has no --admin_secret: it is shown, but cannot be controlled. Restart dispynode with '
                   'one.')
LOST_SCHEDULE = ('Its Stop time came before any client used it, which ends the schedule of dispynode: it accepts '
                 'no jobs, and does not exit at End. Restart dispynode on the node.')
CLOCK_ERROR = 60               # seconds that a node's clock may differ from ours before that is said


class Known(collections.namedtuple('Known', 'sign secret tried admin code')):
    """How a node was opened last: its sign, a new one at each start; the secret that opened it ('' opens nodes
    without any; None while locked); how many of the admin's secrets did not; whether it is an admin secret; the
    auth code that opened it, or one that opens nothing."""

    __slots__ = ()

    def __new__(cls, sign='', secret=None, tried=0, admin=False):
        code = NO_CODE if secret is None else auth_code(secret, sign)
        return super().__new__(cls, sign, secret, tried, admin, code)

    def __repr__(self):
        return 'Known(...)'  # no log shows the secret


STRANGER = Known()


class Group:
    """Nodes that an administrator looks at together: by address, network, or name."""

    def __init__(self, name, patterns):
        self.name, self._networks, self._names = name, [], []
        for pattern in patterns:
            try:
                self._networks.append(ipaddress.ip_network(pattern, strict=False))
            except ValueError:
                if '/' in pattern:  # no name of a node has one
                    raise ValueError('%.80s is no network such as 10.1.0.0/16' % pattern)
                self._names.append(pattern.lower())

    def has(self, address, name):
        """Whether a node at this address, with this name, is in the group."""
        texts = [text.lower() for text in (name, address) if text]
        parsed = ipaddress.ip_address(address.partition('%')[0])
        return (any(fnmatch.fnmatchcase(text, pattern) for text in texts for pattern in self._names)
                or any(parsed in network for network in self._networks))


def idle_reason(seen):
    """Why a node takes no jobs, by dispynode's rule and clock, as one sentence; None when it takes them."""
    if seen.info.serve == 0:
        return 'Accepts no more clients: the number of clients to serve is 0.'
    if seen.info.cpus == 0:
        return 'No CPUs assigned to dispy.'
    start, stop, end = seen.times
    if accepts_jobs(seen.times, seen.now):
        return None
    if start is not None and start >= seen.now:
        return 'Accepts jobs from %s (node time).' % seen.moment(start)
    return 'Stopped accepting jobs at %s (node time).' % seen.moment(end if stop is None else stop)


encode_json = json.JSONEncoder(separators=(',', ':'), allow_nan=False).encode

# What is known of one dispynode, at one address and port, and what of that is known at first.
AT_FIRST = {
    'id': None, 'ip_addr': None, 'port': None,
    'version': None,       # dispy release, from its announcements: a reply does not have it
    'first_seen': None,    # Unix time
    'update_time': None,   # Unix time of its last answer
    'known': STRANGER,     # Known
    'foreign': None,       # id of the node that has this sign already, if another has
    'info': NO_INFO,       # Info: the last full reply; stays when the node is lost
    'is_asked': False,     # whether it has answered, or has failed to
    'error': 'It has not answered yet.',  # one sentence, while unreachable; else None
    'ended': None,         # sentence on how it exits or exited, where that is known
    'is_gone': False,      # whether that is for certain: nothing listens there, or it said that it ends
    'ending_until': 0,     # monotonic time until which its announced end is believed although it answers; else 0
    'aliases': (),         # ids of other addresses that show the same sign
    'announces': None,     # the id that its announcements name instead of this one, where nothing listens
    'clock': OWN_CLOCK,    # NodeClock
    'added': False,        # whether it is remembered over restarts, though no search may reach it
    'desired': {},         # what administrators want of it (see in_force): {key: Setting or Drain}
}


class NodeSnapshot(collections.namedtuple('NodeSnapshot', AT_FIRST)):
    """A node at one moment.  Never changed, so no lock: threads that make its view at one time make the same."""

    sequence, state, reason, controllable, groups = 0, None, None, False, ()
    shares = drift = {}  # what it adds to the totals; {key: sentence}
    _view = _json = None

    def changed(self, sequence, now, groups=(), **changes):
        """What the node is at Unix time `now` with the changes that have this number, where these Groups are."""
        node = self._replace(**changes)
        node.sequence = sequence
        node.state, node.reason = node._state(now)
        answers, name = node.state in (READY, STOPPED), node.info.name
        node.controllable = answers and node.known.admin
        if answers and not node.controllable:
            node.reason = ' '.join(filter(None, (node.reason, NO_ADMIN_REASON)))
        if answers and node.desired:
            node.drift = differences(node.seen(now))
        if 'drain' in node.desired:
            node.drift.pop('cpus', None)  # the reconciler sees to it that a drained node has none
        node.groups = self.groups if self.sequence and name == self.info.name else tuple(
            group.name for group in groups if group.has(node.ip_addr, name))
        node.shares = node._shares(answers)
        return node

    def _state(self, now):
        """(state, reason or None) at Unix time `now`."""
        if self.error:
            release = self.version if self.version not in DISPY_RELEASES and self.update_time is None else None
            return UNREACHABLE, self.error + ''.join(sentence.format(about) for sentence, about in (
                (' Also seen at {}: forget this row to have the node asked there.', ', '.join(self.aliases)),
                (' The dispynode that announces itself from here listens at {0}: add {0}, here or with --node.',
                 self.announces),
                (' It announces dispy {}, which this dispyadmin does not know.', release)) if about)
        if self.foreign:
            return LOCKED, ('Same sign as %s: a second address of that node, or an impostor. No auth code is sent '
                            'to it. If it is the node, forget the other row.' % self.foreign)
        if self.info is NO_INFO or self.known.secret is None:
            return LOCKED, LOCKED_REASON
        idle = idle_reason(self.seen(now))
        return (STOPPED if idle else READY), idle

    def _shares(self, answers):
        """What the node adds to totals: CPUs while it answers, and work that is done.  Times in milliseconds: sums
        of floats drift, and one that is not sane would swallow the others for good."""
        info, drain = self.info, self.desired.get('drain')
        return {'nodes': 1, self.state: 1, 'cpus': answers and info.cpus or 0, 'busy': answers and info.busy or 0,
                'jobs_done': info.jobs_done or 0, 'cpu_time': int(1000 * (info.cpu_time or 0)),
                'drifted': int(bool(self.drift)), 'draining': int(bool(drain and not drain.idle)),
                'drained': int(bool(drain and drain.idle))}

    @property
    def is_managed(self):
        """Whether something is kept of it over restarts."""
        return bool(self.added or self.desired)

    @property
    def is_ending(self):
        """Whether it announced its end a moment ago and still answered then."""
        return bool(self.ending_until and not self.error)

    @property
    def label(self):
        """The node's name and address, as people know it; the port where it is not the usual one."""
        place = self.ip_addr if self.port == PORT_PAIRS[0][1] else self.id
        return '%s (%s)' % (self.info.name, place) if self.info.name else place

    @property
    def view(self):
        """The node as the HTTP interface shows it (see README, HTTP interface); made when first asked for."""
        if self._view is None:
            info, drain = self.info, self.desired.get('drain')
            view = {key: getattr(info if key in Info._fields else self, key, None) for key in VIEW_KEYS}
            view.update(
                avail_info=info.avail_info and dict(zip(AVAILABLE, info.avail_info)), notes=self._notes(),
                addresses=[self.id] + list(self.aliases), groups=list(self.groups),
                drift=list(self.drift.values()) or None,
                wanted={key: setting.asked for key, setting in self.desired.items() if key != 'drain'} or None,
                drain=drain and {
                    'since': drain.since, 'then': drain.then, 'note': drain.note, 'by': drain.by,
                    'idle': drain.idle, 'restore': returned_cpus(self.desired, info).target(info), 'busy': info.busy,
                    'pending': drain.returning})
            self._view = view
        return self._view

    def _notes(self):
        """Sentences on what an administrator has to know of it, beside its reason."""
        notes, ahead = [], self.clock.ahead
        if ahead:
            notes.append("The node's clock is %s %s. Set it right: service times go by it." % (
                span(abs(ahead)), 'ahead' if ahead > 0 else 'behind'))
        if self.state in (READY, STOPPED) and has_lost_schedule(self.info, self.clock.now(time.time())):
            notes.append(LOST_SCHEDULE)
        return notes

    def seen(self, ours, desired=None):
        """What it is at this Unix time of ours; with another desired record, where one is given."""
        return Seen(self.id, self.info, self.clock, ours, self.desired if desired is None else desired)

    def json(self):
        """The view in JSON (str)."""
        if self._json is None:
            self._json = encode_json(self.view)
        return self._json


NOTHING = NodeSnapshot(**AT_FIRST)  # of a node that is not there


def new_row(node_id, now):
    """The NodeSnapshot of a node that is not in the table, seen first at Unix time `now`."""
    address, port = split_id(node_id)
    return NOTHING.changed(0, now, id=node_id, ip_addr=address, port=port, first_seen=now)


def span(seconds):
    """A number of seconds in words."""
    sizes = ('days', DAY), ('h', 3600), ('min', 60)
    unit, size = next((unit, size) for unit, size in sizes if size <= max(seconds / 2, 60))
    return '%d %s' % (seconds // size, unit)


# ---------------------------------------------------------------------------------------------------------------------
# Node table: the lock, and what it guards
# ---------------------------------------------------------------------------------------------------------------------

# What a conversation found out: how the node is opened now (Known), and its Info, None when it is not.
Answer = collections.namedtuple('Answer', 'known info')

Snapshot = collections.namedtuple('Snapshot', 'sequence full nodes removed totals')
Removed = collections.namedtuple('Removed', 'sequence id')
TOTALS = ('nodes',) + STATES + ('cpus', 'busy', 'jobs_done', 'cpu_time', 'drifted', 'draining', 'drained')

# What NodeTable.heard() makes of an announcement.
NEW, SAME, CHANGED = 'new', 'same', 'changed'

# What an answer, or the lack of one, is to the administrator.
FOUND, BACK, RESTARTED, OPENED, ALIAS, LOST = 'found', 'back', 'restarted', 'opened', 'alias', 'lost'
IMPERSONATED, DRIFTED, DRAINED = 'impersonated', 'drifted', 'drained'
HAPPENED = {FOUND: 'is found', BACK: 'answers again', OPENED: 'is opened', RESTARTED: 'was started again',
            IMPERSONATED: 'shows the sign of another node'}
EVENT_KINDS = (LOST, BACK, RESTARTED, FOUND, OPENED, IMPERSONATED, DRIFTED, DRAINED)  # of events of a node


class Links(dict):
    """{key: id of the node that it belongs to}, which also tells what belongs to a node."""

    def __init__(self):
        super().__init__()
        self._keys = {}  # id -> {key: None}, the first key first

    def of(self, node_id):
        """The keys that belong to a node, as a tuple."""
        return tuple(self._keys.get(node_id, ()))

    def link(self, key, node_id):
        """Let a key belong to this node, and to no other; with None, to none."""
        before = self.pop(key, None)
        if before is not None:
            del self._keys[before][key]
            if not self._keys[before]:
                del self._keys[before]
        if node_id is not None:
            self[key] = node_id
            self._keys.setdefault(node_id, {})[key] = None


def locked(method):
    """A method of NodeTable that holds the table's lock."""
    @functools.wraps(method)
    def holding(self, *args, **kwargs):
        with self._lock:
            return method(self, *args, **kwargs)
    return holding


class NodeTable:
    """All nodes.  Its lock is held for microseconds: no I/O and no encoding under it.

    Each change gives the node the next number of one sequence and a new NodeSnapshot; readers ask for what has
    changed since a number.  It starts at the time in microseconds: no number of an earlier run is one of this.
    """

    def __init__(self, clock=time.time, monotonic=time.monotonic, groups=()):
        self._clock, self._monotonic, self._groups = clock, monotonic, groups
        self._lock = threading.Lock()  # guards all that follows
        self._nodes = {}               # id -> NodeSnapshot, those that changed last at the end
        self._owners = Links()         # sign -> id of the one address that auth codes for it may go to
        self._aliases = Links()        # id of another address -> id of its node, which may have no row yet
        self._announced = Links()      # id of a row -> the id that its node announces itself as
        self._changes = 0              # changes of what is kept of nodes
        self._removed = collections.deque(maxlen=MAX_REMOVED)
        self._first = self._sequence = int(clock() * 1e6)
        self._totals = {name: dict.fromkeys(TOTALS, 0)  # of all nodes (None), and of those in each group
                        for name in [None] + [group.name for group in groups]}

    # --- for readers ---

    def snapshot(self, since=None):
        """What has changed after sequence number `since`; everything (full) when there is no telling."""
        def recent(entries):
            return list(itertools.takewhile(lambda entry: entry.sequence > since, reversed(entries)))

        with self._lock:
            sequence, totals = self._sequence, self._totals_json(None)
            full = since is None or not self._first <= since <= sequence or (
                len(self._removed) == MAX_REMOVED and self._removed[0].sequence > since)
            nodes = list(self._nodes.values())  # all at once, as a copy of 10,000 references takes 0.1 ms
            removed = set() if full else {gone.id for gone in recent(self._removed) if gone.id not in self._nodes}
        return Snapshot(sequence, full, nodes if full else recent(nodes)[::-1], sorted(removed), totals)

    @locked
    def group_totals(self):
        """{name of a group: its totals}."""
        return collections.OrderedDict((group.name, self._totals_json(group.name)) for group in self._groups)

    @locked
    def get(self, node_id):
        """The NodeSnapshot of a node, or None."""
        return self._nodes.get(node_id)

    def look(self, node_id):
        """The NodeSnapshot of a node, NOTHING when it is not in the table."""
        return self.get(node_id) or NOTHING

    @locked
    def published(self):
        """{id: NodeSnapshot} of all nodes."""
        return dict(self._nodes)

    def snapshots(self, ids):
        """{id: NodeSnapshot} of those of these nodes that are in the table, from one look at it."""
        nodes = self.published()
        return {node_id: nodes[node_id] for node_id in ids if node_id in nodes}

    def managed(self):
        """The NodeSnapshots of the nodes of which something is kept."""
        return [node for node in self.published().values() if node.is_managed]

    def ids(self, state=None):
        """The ids of all nodes, or of those in this state."""
        return [node_id for node_id, node in self.published().items() if state in (None, node.state)]

    def has_unasked(self):
        """Whether there are nodes that have not been asked yet."""
        return not all(node.is_asked for node in self.published().values())

    @locked
    def changes(self):
        """A number that grows when something changes of what is kept of nodes."""
        return self._changes

    def __contains__(self, node_id):
        return self.get(node_id) is not None

    @locked
    def row(self, node_id):
        """The id of the row that stands for this address: its own, or that of the node whose alias it is."""
        return self._aliases.get(node_id, node_id)

    @locked
    def owner(self, sign):
        """The id of the row that has this sign, or None."""
        return self._owners.get(sign)

    # --- for those who talk to nodes ---

    @locked
    def may_send(self, node_id, sign):
        """Whether auth codes made from `sign` may go to this address: it is the first that has shown the sign.
        Else another host could collect, by showing the sign of a node, the code that opens the node."""
        if sign not in self._owners:
            self._owners.link(sign, node_id)
        return self._owners[sign] == node_id

    @locked
    def add(self, address, port, version=None):
        """A row for an address that was named, or that announces this release, before it has answered."""
        node_id = format_id(address, port)
        if node_id not in self._nodes and node_id not in self._aliases and len(self._nodes) < MAX_NODES:
            self._change(node_id, version=version)

    @locked
    def answered(self, node_id, answer, create=False):
        """A node has answered.  Returns what that is to administrators, FOUND to ALIAS, or None.  With `create`,
        an address that is not in the table gets a row, or becomes an alias of the row that has its sign."""
        known, node = answer.known, self._nodes.get(node_id, NOTHING)
        owner = self._owners.get(known.sign, node_id)
        is_new, is_foreign = known.sign != node.known.sign, owner != node_id
        if is_foreign and (create if node is NOTHING else not node.known.sign):
            return self._alias(node_id, owner)
        if node is NOTHING and (not create or len(self._nodes) >= MAX_NODES):
            self._release(node_id)
            return None
        if not is_new and known.secret is None and node.known.secret is not None:
            return None  # it was asked before the secret came that has opened it meanwhile
        ends = {'ended': None, 'ending_until': 0} if is_new or self._monotonic() > node.ending_until else {}
        self._change(node_id, known=known, foreign=owner if is_foreign else None, update_time=self._clock(),
                     info=answer.info or (NO_INFO if is_new else node.info), is_asked=True, error=None,
                     is_gone=False, announces=None, **ends)
        self._release(node_id, keep=known.sign)
        self._link_alias(node_id, None)
        for row_id in self._announced.of(node_id):  # where it announces itself from, and nothing listens
            if self._nodes[row_id].update_time is None and not self._nodes[row_id].is_managed:
                self._remove(row_id)
        return next((event for event, holds in (
            (FOUND, node.update_time is None), (IMPERSONATED, is_foreign and not node.foreign),
            (RESTARTED, is_new), (BACK, node.error),
            (OPENED, node.known.secret is None and known.secret is not None)) if holds), None)

    def _alias(self, node_id, owner):
        """This address shows the sign of `owner`: it is no row (any more), and an alias of no other node.  What
        was set at it goes along.  Lock held."""
        node, gone = self._nodes.get(owner), self._nodes.get(node_id)
        if gone:
            if node:
                self._change(owner, desired=dict(gone.desired, **node.desired), added=node.added or gone.added)
            elif gone.is_managed:
                return None  # the owner is being asked now: this row goes when that has a row to carry it over to
            self._remove(node_id)
        self._release(node_id)
        if self._aliases.get(node_id) == owner:
            return None
        has_room = len(self._aliases.of(owner)) < MAX_ADDRESSES - 1
        self._link_alias(node_id, owner if has_room else None)
        return ALIAS if has_room else None

    @locked
    def failed(self, node_id, sentence, is_gone=False):
        """A node did not answer; `is_gone` when nothing listens there.  Returns LOST when it had, else None."""
        node, now = self._nodes.get(node_id, NOTHING), self._clock()
        self._release(node_id, keep=node.known.sign)
        if node is NOTHING:
            return None
        is_lost, ended, end = node.error is None, node.ended, node.info.service_end
        if is_lost and not node.ending_until:  # one that was lost before its End was not ended by that
            is_end = end is not None and (node.update_time or 0) < end - (node.clock.ahead or 0) <= now
            ended = 'dispynode exited at its End time; restart it on the node.' if is_end else None
        self._change(node_id, error=ended or sentence, ended=ended, is_gone=is_gone or bool(node.ending_until),
                     is_asked=True)
        return LOST if is_lost else None

    @locked
    def heard(self, node_id, announcement, named=None, connected=False):
        """An announcement from this very address, by a connection or a datagram; `named` is the id that it names.
        Returns (NEW, SAME or CHANGED, id of the row that it concerns).

        A node at a second address of its machine announces itself from the first, where nothing listens: it is
        that row's which has the sign, but for what anybody could say in its place, that it ends.
        """
        row = self._aliases.get(node_id, node_id)
        is_own = row in self._nodes
        if not is_own and named and self._owners.get(announcement.sign) == named:
            row = named
        node = self._nodes.get(row)
        if node is None:
            return NEW, node_id
        changes, is_same = {}, node.known.sign == announcement.sign
        is_end = is_same and is_own and announcement.tag == 'TERMINATED'
        if connected and node.error and named not in (None, row):
            changes['announces'] = named
        if is_same and announcement.version:
            changes['version'] = announcement.version
        if is_end:
            changes['ending_until'] = self._monotonic() + ENDING_TIME
            changes['ended'] = 'dispynode exited at %s, as it announced; restart it on the node.' % (
                time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self._clock())))
        self._change(row, **changes)
        return (SAME if is_same and not is_end and not node.error else CHANGED), row

    @locked
    def keep(self, node_id, **values):
        """Change what is kept of a node."""
        if node_id in self._nodes:
            self._change(node_id, **values)

    @locked
    def edit(self, node_id, changes, expected=None):
        """Change what administrators want of a node: {key: new value, or None}.  Whether it was done: not where
        there is no such row, nor where its desired record is not the `expected` one any more, so that none
        overwrites what it does not know of."""
        node = self._nodes.get(node_id)
        if node is None or expected not in (None, node.desired):
            return False
        self._change(node_id, desired=merged(node.desired, changes))
        return True

    @locked
    def drop_aliases(self, node_id):
        """Forget the other addresses of a node, and return them: each is to be asked again."""
        dropped = list(self._aliases.of(node_id))
        for alias in dropped:
            self._link_alias(alias, None)
        return dropped

    @locked
    def forget(self, node_id):
        """Remove a row; False when there is none."""
        if node_id not in self._nodes:
            return False
        self._remove(node_id)
        return True

    # --- inside, lock held ---

    def _change(self, node_id, **changes):
        """Change what is known of a node, which gets a row where it has none."""
        now, before = self._clock(), self._nodes.get(node_id)
        node = before or new_row(node_id, now)
        changes['aliases'] = self._aliases.of(node_id)
        if node is not before or any(getattr(node, key) != value for key, value in changes.items()):
            # Made before anything is touched: whatever goes wrong in it leaves the old truth in place.
            self._put(before or NOTHING, node.changed(self._sequence + 1, now, self._groups, **changes))

    def _remove(self, node_id):
        self._put(self._nodes[node_id], NOTHING)
        self._release(node_id)

    def _put(self, before, after):
        """Put one NodeSnapshot of a node in the place of another; NOTHING is that of a node that is not there."""
        node_id = before.id or after.id
        self._sequence += 1
        self._nodes.pop(node_id, None)
        if after is NOTHING:
            self._removed.append(Removed(self._sequence, node_id))
        else:
            self._nodes[node_id] = after
        self._changes += (before.added, before.desired, before.clock) != (after.added, after.desired, after.clock)
        if before.announces != after.announces:
            self._announced.link(node_id, after.announces)
        if (before.shares, before.groups) == (after.shares, after.groups):
            return
        for node, sign in ((before, -1), (after, 1)):
            for name, (key, share) in itertools.product((None,) + node.groups, node.shares.items()):
                self._totals[name][key] += sign * share

    def _totals_json(self, name):
        """The totals of a group, or of all nodes, as the HTTP interface shows them."""
        return dict(self._totals[name], cpu_time=self._totals[name]['cpu_time'] / 1000)

    def _link_alias(self, alias, node_id):
        """Let an address be another one of this node, and of no other; with None, of none."""
        last = self._aliases.get(alias)
        self._aliases.link(alias, node_id)
        for changed in (last, node_id):
            if changed in self._nodes:
                self._change(changed)

    def _release(self, node_id, keep=''):
        """Give back the signs that an address owns, but `keep`; without that, its other addresses as well."""
        for sign in self._owners.of(node_id):
            if sign != keep:
                self._owners.link(sign, None)
        for alias in () if keep or node_id in self._nodes else self._aliases.of(node_id):
            self._aliases.link(alias, None)


# ---------------------------------------------------------------------------------------------------------------------
# Node client: conversations, exchanges, and the thread that runs them
# ---------------------------------------------------------------------------------------------------------------------
# A conversation is a generator: it yields requests and is sent replies, so it knows the protocol and no socket.  The
# poller runs many of them at once; each of their exchanges has a connection and a deadline of its own.

def ask_info(request, known, secrets_, may_send):
    """Conversation: what is this node, and does one of the admin's secrets open it?  Returns an Answer.

    `request` is the NODE_INFO message with the admin's own sign, `known` how the node was opened last; `may_send(sign)`
    says whether auth codes made from a sign may go to this address.
    """
    secrets_ = tuple(secrets_)  # more may be added meanwhile, by another thread
    opened = known.secret is not None and may_send(known.sign)
    shown = read_info((yield frame(known.code if opened else NO_CODE, request)))
    if opened and isinstance(shown, Info):
        return Answer(known, shown)
    if opened and shown == known.sign:  # a dispynode cannot change its secret while it runs
        raise NodeError('It does not take the secret any more that opened it: another program may answer at its address.')
    for _ in range(MAX_SIGNS):
        if isinstance(shown, Info):
            raise NodeError('It answers whatever auth code it is sent, so it is no dispynode.')
        sign, known = shown, known if shown == known.sign else STRANGER
        if not may_send(sign):
            return Answer(Known(sign), None)
        for secret in secrets_[known.tried:]:
            code = auth_code(secret, sign)
            shown = read_info((yield frame(code, request)))
            if isinstance(shown, Info):
                admin = secret != '' and (yield from is_admin(code))
                return Answer(Known(sign, secret, admin=admin), shown)
            if shown != sign:
                break  # it was started again while it was asked
        else:
            return Answer(Known(sign, tried=len(secrets_)), None)
    raise NodeError('It shows a new sign each time it is asked.')


class Plain(bytes):
    """A request that goes without TLS, whatever is used otherwise."""


class Once(bytes):
    """A request that is never sent twice: it changes something."""


def plain_first(request, steps):
    """Conversation: these `steps`, which use TLS, unless the node tells its sign, no secret, without: a dispynode without
    TLS takes the beginning of TLS for a message of up to 4 GB, and makes room for that."""
    try:
        read_info((yield Plain(frame(NO_CODE, request))))
    except MismatchError:
        return (yield from steps)
    raise MismatchError('It does not use TLS: start dispynode there with the same --certfile and --keyfile as dispyadmin.')


NO_CONTROL = write_message(b'SERVICE_TIME:', {'control': 'none', 'time': None})  # a control that does not exist


def is_admin(code):
    """Conversation: does this auth code come from the admin secret?  A node that is opened by its client secret, for want
    of an admin secret, answers a control that does not exist with nothing, others with -1."""
    try:
        return read_control((yield frame(code, NO_CONTROL))) is not NOT_ADMIN
    except (WireError, NodeError):
        return True  # no answer is no proof; the first real control will tell


class NonblockingConnection:
    """A connection whose run(), a generator, does what can be done now and yields the selector events to wait for."""

    def __init__(self, sock=None, tls=None, expires=math.inf):
        self.sock = sock
        self.tls = tls          # SSLContext, or None
        self.expires = expires  # monotonic time at which it is given up
        self.message = None     # the one that came in
        self.moves = self.run()
        self._events = 0        # what a selector waits for; 0 when it is not registered

    def watch(self, selector, events, call=None):
        """Let a selector call this when one of these events happens; with 0, no more."""
        if self._events and events:
            selector.modify(self.sock, events, call)
        elif events:
            selector.register(self.sock, events, call)
        elif self._events:
            selector.unregister(self.sock)
        self._events = events

    @staticmethod
    def finish_call(call, *arguments, events=selectors.EVENT_READ):
        """Call again and again until that need not wait.  Without TLS, it waits for `events`."""
        while True:
            try:
                return call(*arguments)
            except BlockingIOError:
                yield events
            except ssl.SSLWantReadError:
                yield selectors.EVENT_READ
            except ssl.SSLWantWriteError:
                yield selectors.EVENT_WRITE

    def start_tls(self, **options):
        self.sock = self.tls.wrap_socket(self.sock, do_handshake_on_connect=False, **options)
        return self.finish_call(self.sock.do_handshake)

    def receive(self):
        """One message: 4 bytes of length, then that many bytes.  The length is checked before anything is kept."""
        data, size = b'', math.inf
        while len(data) < 4 + size:
            more = yield from self.finish_call(self.sock.recv, 4096)  # more than any reply has
            if not more:
                raise MismatchError('It closed the connection without an answer; is TLS (--certfile) used on one side '
                                    'only?')
            data += more
            if len(data) >= 4:
                size, = struct.unpack_from('>L', data)
                if data[:2] == b'\x15\x03':
                    raise MismatchError('It uses TLS: start dispyadmin with its --certfile, too.')
                if size > MAX_MESSAGE:
                    raise NodeError('It sends a message of %d bytes, so it is no dispynode.' % size)
        self.message = data[4:4 + size]

    def close(self):
        self.moves.close()
        if self.sock is not None:
            self.sock.close()


class Talk(NonblockingConnection):
    """One conversation with one address: exchanges, one after the other, each a connection of its own.

    At its end, done(result, error) is called on the poller's thread, which alone uses what follows; one of them is None.
    """

    def __init__(self, address, port, steps, done):
        self.address, self.port, self.steps, self.done = address, port, steps, done
        self.lane = None      # of LANES: where it waits, or waited
        self.request = None   # what is sent, or waits to be sent, now
        self.is_slow = False  # whether it has the place of a slow one
        self.is_sent = False  # whether the node may have taken any of the request

    def begin(self, tls):
        """Begin an exchange; advance() goes on with it."""
        super().__init__(None, None if isinstance(self.request, Plain) else tls, time.monotonic() + EXCHANGE_TIME)
        self.is_slow, self.is_sent = self.lane in WHOLE_TIME_LANES, False

    def run(self):
        self.sock = socket.socket(family_of(self.address), socket.SOCK_STREAM)
        self.sock.setblocking(False)
        error = self.sock.connect_ex(socket_address(self.address, self.port))
        if error in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            yield selectors.EVENT_WRITE
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        if self.tls:
            yield from self.start_tls()
        request = self.request
        while request:
            sent = yield from self.finish_call(self.sock.send, request, events=selectors.EVENT_WRITE)
            self.is_sent = True
            request = request[sent:]
        if not self.tls:
            yield selectors.EVENT_READ  # no reply is there yet: spare the look
        yield from self.receive()

    def too_late(self):
        """What it means that there was no answer in time, as a NodeError."""
        if isinstance(self.sock, ssl.SSLSocket) and self.sock.version() is None:
            return MismatchError('No answer within %g seconds to the beginning of TLS: it hangs, or dispynode is started '
                                 'without --certfile.' % EXCHANGE_TIME)
        return NodeError(NO_ANSWER)


NO_ANSWER = 'No answer within %g seconds: the machine is off or hangs, or a firewall drops the port.' % EXCHANGE_TIME
_CLOSED = MismatchError, 'It closed the connection while it was asked; is TLS (--certfile) used on one side only?'
CONNECTION_ERRORS = {
    errno.ECONNREFUSED: (RefusedError, 'Connection refused: the machine is there, but dispynode does not run at this '
                                       'address and port.'),
    errno.ECONNRESET: _CLOSED, errno.EPIPE: _CLOSED,
}


def connection_error(error):
    """The NodeError for an OSError of an exchange: it says what to do."""
    if isinstance(error, ssl.SSLError):
        why = printable(getattr(error, 'reason', None) or error)
        return MismatchError('It has another certificate: start dispynode and dispyadmin with the same --certfile.'
                             if why == 'CERTIFICATE_VERIFY_FAILED' else
                             'TLS fails (%s): is dispynode started with --certfile, too?' % why.lower().replace('_', ' '))
    kind, sentence = CONNECTION_ERRORS.get(error.errno) or (NodeError, system_error(error, 'It cannot be reached: %s.'))
    return kind(sentence)


# Where conversations wait for a place, in the order in which they get one: asked for, or due to be polled; the same with
# nodes that failed last or take long; new addresses; and those of them that have been tried already.
LANES = ('asked', 'asked_slow', 'new', 'aside')
WHOLE_TIME_LANES = ('asked_slow', 'aside')  # their exchanges have EXCHANGE_TIME from the start


class Poller(SocketWorker):
    """Runs conversations: many exchanges at once on one thread, so that those without an answer hold up nobody.

    Of the places, one quarter is kept for what is asked for.  An exchange that lasts longer than QUICK_TIME needs a place
    among the slow ones; when there is none it is set aside, which says nothing about its node, and begun again when there
    is.  A new address gives way to others that have not been tried: 3,000 forged announcements whose addresses swallow
    connections keep a node from the table for 3000 / 384 * 0.5 = 4 s.
    """

    name = 'poller'

    def __init__(self, places, tls=None, take_due=lambda now, room, slow_room: ([], []), next_look=lambda: math.inf):
        super().__init__()
        self.places = places      # exchanges at one time; each needs a file descriptor
        self._tls = tls
        self._take_due = take_due    # talks that are due, with nodes that answered last and with others: so many at most
        self._next_look = next_look  # monotonic time at which to call that again, unless wake() is called before
        self._lanes = collections.OrderedDict((lane, collections.deque()) for lane in LANES)  # any thread appends
        # The rest is this thread's alone.
        self._open = set()        # talks that have an exchange
        self._limit = places      # lower than `places` while the system has no more descriptors
        self._look_at = 0.0       # monotonic time at which to look for polls that are due
        self._expire_at = 0.0     # monotonic time at which to look at open exchanges
        self.last_turn = time.monotonic()  # at which the last turn began; read by any
        self.answered, self.answered_seconds, self.failed = 0, 0.0, 0  # exchanges; read by any

    # --- any thread ---

    def submit(self, talk, lane='asked'):
        """Run a conversation when those before it in its lane, and in the lanes before that, have a place."""
        self._lanes[lane].append(talk)
        self.wake()

    def load(self):
        """({lane: how many conversations wait in it}, {kind: how many exchanges are open})."""
        open_, slow = len(self._open), self._slow_ones()
        return {lane: len(talks) for lane, talks in self._lanes.items()}, {'quick': open_ - slow, 'slow': slow}

    # --- this thread ---

    def turn(self):
        self.last_turn = now = time.monotonic()
        self._limit = min(self.places, self._limit + 1)
        if now >= self._look_at and not self._lanes['asked']:
            self._take_polls(now)
        for lane, talks in self._lanes.items():
            while talks and self._room(lane) > 0:
                talk = talks.popleft()
                talk.lane = lane
                self._guard(self._launch if talk.request else self._step, talk)
        patience = self._patience(now)
        self.sleep(patience)
        late = time.monotonic() - now - patience
        if late > 1.0:  # this program was stopped, or starved: that says nothing about the nodes
            for talk in self._open:
                talk.expires += late
        if time.monotonic() >= self._expire_at:
            self._expire(time.monotonic())

    def woken(self):
        super().woken()
        self._look_at = 0.0

    def advance(self, talk):
        self._guard(super().advance, talk)

    def _patience(self, now):
        """Seconds until there may be something to do that no socket tells."""
        then = now + (AGE_INTERVAL if self._open or any(self._lanes.values()) else LONGEST_TURN)
        return max(0.0, (min(then, self._look_at) if self._room('asked') > 0 else then) - now)

    def _slow_ones(self):
        return sum([talk.is_slow for talk in list(self._open)])

    def _room(self, lane):
        """How many exchanges may begin now for talks of this lane."""
        return self._limit - len(self._open) - (0 if lane == 'asked' else self._limit // 4)

    def _take_polls(self, now):
        room, slow_room = self._room('asked'), self._room('asked_slow') - len(self._lanes['asked_slow'])
        if room > 0:
            likely, others = self._take_due(now, room, slow_room)
            self._lanes['asked'].extend(likely)
            self._lanes['asked_slow'].extend(others)
            self._look_at = now if len(likely) == room else self._next_look()

    def _guard(self, call, talk, *arguments):
        """Do a part of a conversation.  Whatever goes wrong in it, the conversation ends and the others go on."""
        try:
            call(talk, *arguments)
        except Exception as problem:
            self.report(problem)
            self._land(talk)
            self._end(talk, None, NodeError(UNEXPECTED))

    def _step(self, talk, reply=None, error=None):
        """Let a conversation go on: it has a request, or it ends."""
        try:
            talk.request = talk.steps.throw(error) if error else talk.steps.send(reply)
        except StopIteration as end:
            self._end(talk, end.value, None)
        except (NodeError, WireError) as problem:
            self._end(talk, None, problem)
        else:
            self._launch(talk)

    def _end(self, talk, result, error):
        done, talk.done = talk.done, lambda *_: None  # what fails after its end is not told again
        try:
            done(result, error)
        except Exception as problem:
            self.report(problem)

    def _launch(self, talk):
        talk.begin(self._tls)
        self._open.add(talk)
        self.advance(talk)

    def over(self, talk, error):
        self._land(talk)
        if error is None:
            self.answered += 1
            self.answered_seconds += time.monotonic() + EXCHANGE_TIME - talk.expires
            talk.lane = 'asked'  # what answers is no slow one
            self._step(talk, talk.message)
        elif isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            self._lanes[talk.lane].append(talk)  # it begins again: that says nothing about its node
            self._limit = len(self._open)
        else:
            self.failed += 1
            error = connection_error(error) if isinstance(error, OSError) else error
            error.is_sent = talk.is_sent
            self._step(talk, error=error)

    def _land(self, talk):
        """Give its place back.  Raises nothing: the conversation has to be told next."""
        if talk in self._open:
            self._open.remove(talk)
            try:
                talk.watch(self.selector, 0)
                talk.close()
            except Exception as error:
                self.report(error)

    def _expire(self, now):
        """Give up exchanges that were not answered in time, and count as slow those that last."""
        self._expire_at = now + AGE_INTERVAL
        for talk in list(self._open):
            if talk.expires <= now:
                self._guard(self.over, talk, talk.too_late())
            elif not talk.is_slow and talk.expires <= now + EXCHANGE_TIME - QUICK_TIME:
                self._slow_down(talk)

    def _slow_down(self, talk):
        """An exchange lasts longer than a quick one: it goes on among the slow ones, or begins again when it may."""
        is_new, is_full = talk.lane == 'new', self._slow_ones() >= self._limit - self._limit // 4
        talk.is_slow = isinstance(talk.request, Once) or not (is_full or is_new and self._lanes['new'])
        if not talk.is_slow:
            self._land(talk)
            self._lanes['aside' if is_new else 'asked_slow'].append(talk)

    def finish(self):
        for talk in list(self._open):
            self._land(talk)
            talk.steps.close()
        super().finish()


# ---------------------------------------------------------------------------------------------------------------------
# Discovery: listener and announcer
# ---------------------------------------------------------------------------------------------------------------------

# On Linux a UDP socket at one of our addresses is in the way of no program of dispy: they bind broadcast addresses and
# groups.  These are left to them: a client (JobCluster) that finds them taken asks for nodes all the same, once, and hears
# no answer (seen: with turns of 16 s held and 7 s free, 14 of 20 clients hung for ever).  On macOS and BSD a client binds
# the wildcard, and on Windows its own address: there, all of the port goes in turns.
HEARS_APART = sys.platform.startswith('linux')


def has_ipv6():
    """Whether IPv6 sockets can be bound here (it may be compiled in and switched off)."""
    return socket.has_ipv6 and is_bindable('::')


class HeardPort:
    """A port of this machine, and the sockets at which it is heard.  Run by the listener's thread alone."""

    def __init__(self, port, listener):
        self.port, self._listener = port, listener
        self.state = 'off'         # 'held', 'resting' (free for a while), 'left to a client', 'own addresses'
        self.next_turn = math.inf  # monotonic time at which to take it, or to leave it
        self.sockets = {}          # (kind, address) -> socket

    def hear(self, places, whole=True):
        """Hear at these (kind, address) and no others: at all of them or at none (OSError), or else at what can be had.

        A dispy client takes UDP first, and tries again for ever; TCP it tries to take once.  So UDP comes first in
        `places`, and is given up last.
        """
        for place in reversed([place for place in self.sockets if place not in places]):
            with self.sockets.pop(place) as sock:
                self._listener.selector.unregister(sock)
        for kind, address in [place for place in places if place not in self.sockets]:
            try:
                sock = self.sockets[kind, address] = open_socket(kind, address, self.port)
                self._listener.take_up(sock, kind)
            except (OSError, NodeError) as error:  # what cannot be had is tried again in WATCH_INTERVAL
                logger.debug('port %d is not heard at %s: %s', self.port, address, error)
                if whole:
                    self.hear(())
                    raise

    def take_turn(self, places):
        """Take the port for a while, or leave it to dispy clients."""
        was_held = self.state == 'held'
        try:
            self.hear(() if was_held else places)
            self.state, pause = ('resting', REST_TIME) if was_held else ('held', HOLD_TIME)
        except OSError:
            self.state, pause = 'left to a client', RETRY_TIME
        self.next_turn = time.monotonic() + pause


class Inbound(NonblockingConnection):
    """A connection that a node has opened to tell of itself: one message, no reply."""

    def __init__(self, sock, address, tls, expires):
        sock.setblocking(False)
        super().__init__(sock, tls, expires)
        self.address = address

    def run(self):
        if self.tls:
            self.sock.getpeername()  # OSError when it is gone already: wrapping it then would leave it open
            yield from self.start_tls(server_side=True)
        yield from self.receive()


class Listener(SocketWorker):
    """Hears nodes: datagrams on the info ports, and connections on the reply port.

    `hear(address, announcement, connected)` is called for each announcement, on this thread.
    """

    name = 'listener'

    def __init__(self, hosts, info_port, reply_port, places, tls, hear):
        """`hosts` are addresses, or none for all; `info_port` is None for the usual ones, left to dispy clients (see
        HEARS_APART) or in turns with them, else a port to hold, or 0 for none; `reply_port` is None for the usual one.
        StartError."""
        super().__init__()
        self.hear = hear
        self.is_deaf = not info_port  # whether announcements to all are missed, at least at times
        self._places = places         # connections at one time
        self._tls = tls
        self._inbound = collections.OrderedDict()  # Inbound -> None, by deadline
        self._network = (), ()                     # (own addresses, Interfaces): replaced whole by follow()
        self._memberships = set()                  # (socket, address, index of its interface): joined groups
        self._complained = set()                   # addresses whose bad messages were logged, this hour
        self._complained_since = time.monotonic()
        wildcards = ('0.0.0.0', '::') if has_ipv6() else ('0.0.0.0',)
        self._tcp = [(socket.SOCK_STREAM, address) for address in hosts or wildcards]
        # All of a port: UDP at the wildcard, which hears broadcasts and groups as well, and TCP.
        self._whole = [(socket.SOCK_DGRAM, address) for address in wildcards] + self._tcp
        self._goes_apart = info_port is None and HEARS_APART
        ports = [info for info, _ in PORT_PAIRS] if info_port is None else [info_port] if info_port else []
        self.info_ports = [HeardPort(port, self) for port in ports]
        self._reply = None                         # HeardPort, where it is no info port
        try:
            self.reply_port = self._open(info_port, reply_port)
        except StartError:
            self.finish()
            raise

    def _open(self, info_port, wanted):
        """Begin with the info ports, and listen where nodes are told to answer; returns that port."""
        try:
            for port in self.info_ports:
                if info_port:
                    port.hear(self._whole)
                    port.state = 'held'
                elif not HEARS_APART:
                    port.next_turn = 0.0
        except OSError as error:
            raise StartError('--info_port %d: cannot be held. %s Give another port, or none.'
                             % (info_port, system_error(error)))
        if info_port and wanted in (None, info_port):
            return info_port
        # The usual one may be another dispyadmin's: then any will do that is free at all addresses.
        for port in [wanted] if wanted else [REPLY_PORT] * (wanted is None) + random.sample(range(49152, 65536), 20):
            try:
                self._reply = HeardPort(port, self)
                self._reply.hear(self._tcp)
                return port
            except OSError as error:
                refused = error
        raise StartError('%s: cannot listen at %s. %s' % (
            '--reply_port %d' % (wanted or REPLY_PORT), ', '.join(address for _, address in self._tcp),
            system_error(refused)))

    # --- any thread ---

    def follow(self, own, sources):
        """Hear at these `own` addresses of this machine, and the groups in the networks of these Interfaces."""
        self._network = own, sources
        self.wake()

    # --- this thread ---

    def turn(self):
        now = time.monotonic()
        for info_port in self.info_ports:
            if now >= info_port.next_turn:
                info_port.take_turn(self._whole)
                self._join_groups()
        times = [info_port.next_turn for info_port in self.info_ports]
        times += [inbound.expires for inbound in itertools.islice(self._inbound, 1)]
        self.sleep(max(0.0, min(times + [now + 60.0]) - now))
        while self._inbound and next(iter(self._inbound)).expires <= time.monotonic():
            self._drop(next(iter(self._inbound)))

    def woken(self):
        super().woken()
        for info_port in self.info_ports if self._goes_apart else ():
            info_port.hear([(socket.SOCK_DGRAM, address) for address in self._network[0]], whole=False)
            info_port.state = 'own addresses' if info_port.sockets else 'left to a client'
        if not self._goes_apart:
            self._join_groups()

    def take_up(self, sock, kind):
        """Begin to hear at a socket."""
        take, handle = ((sock.accept, self._accept) if kind == socket.SOCK_STREAM else
                        (functools.partial(sock.recvfrom, MAX_DATAGRAM + 1), self._understand))
        self.selector.register(sock, selectors.EVENT_READ, functools.partial(self._take_all, take, handle))

    def _take_all(self, take, handle):
        for _ in range(256):  # then other sockets have their turn
            try:
                taken, sender = take()
            except BlockingIOError:
                return
            except OSError as error:
                self.report_once('a node that connected cannot be heard. %s' % system_error(error))
                self.stopping.wait(0.05)  # no descriptors: some are free again in a moment
                return
            handle(taken, peer_address(sender))

    def _accept(self, sock, address):
        if len(self._inbound) >= self._places:
            self._drop(next(iter(self._inbound)))  # the oldest has had its chance
        inbound = Inbound(sock, address, self._tls, time.monotonic() + EXCHANGE_TIME)
        self._inbound[inbound] = None
        self.advance(inbound)

    def over(self, inbound, error):
        self._drop(inbound)
        if isinstance(error, (ssl.SSLError, NodeError)):
            self._complain(inbound.address, error)
        elif error:
            logger.debug('%s connected and went: %s', inbound.address, error)
        elif inbound.message is not None:  # else it was dropped for another since the selector told of it
            self._understand(inbound.message, inbound.address, True)

    def _drop(self, inbound):
        self._inbound.pop(inbound, None)
        inbound.watch(self.selector, 0)
        inbound.close()

    def _understand(self, message, address, connected=False):
        try:
            announcement = read_announcement(message) if len(message) <= MAX_MESSAGE else None
        except WireError as error:
            self._complain(address, error)
        else:
            if announcement:
                self.hear(address, announcement, connected)

    def _complain(self, address, error):
        """Log what is wrong with a sender's message, once for each sender."""
        if time.monotonic() - self._complained_since > 3600:
            self._complained, self._complained_since = set(), time.monotonic()
        if address not in self._complained and len(self._complained) <= MAX_COMPLAINTS:
            self._complained.add(address)
            logger.warning('%s', '%s sends what no dispynode sends (said once an hour): %s' % (address, error)
                           if len(self._complained) <= MAX_COMPLAINTS else
                           'more senders send what no dispynode sends; no further ones are named for an hour')

    def _join_groups(self):
        """Let each UDP socket at the wildcard be a member of the groups on the interfaces that there are now."""
        sockets = [sock for port in self.info_ports for (kind, _), sock in port.sockets.items()
                   if kind == socket.SOCK_DGRAM]
        wanted = {(sock, source.address, source.index) for sock in sockets for source in self._network[1]
                  if family_of(source.address) == sock.family}
        for membership in self._memberships - wanted:
            self._set_membership(*membership, join=False)
        self._memberships = {membership for membership in wanted if membership in self._memberships
                             or self._set_membership(*membership, join=True)}

    @staticmethod
    def _set_membership(sock, address, index, join):
        """Join the group on an interface, or leave it; False when that cannot be: the interface has just come or gone."""
        if sock.family == socket.AF_INET6:
            level, options = socket.IPPROTO_IPV6, (socket.IPV6_LEAVE_GROUP, socket.IPV6_JOIN_GROUP)
            group = socket.inet_pton(socket.AF_INET6, GROUP_V6) + struct.pack('@I', index)
        else:
            level, options = socket.IPPROTO_IP, (socket.IP_DROP_MEMBERSHIP, socket.IP_ADD_MEMBERSHIP)
            group = socket.inet_aton(GROUP_V4) + socket.inet_aton(address)
        try:
            sock.setsockopt(level, options[join], group)
            return True
        except OSError as error:
            logger.debug('group of nodes on %s: %s', address, error)
            return error.errno == errno.EADDRINUSE  # joined already

    def finish(self):
        for port in self.info_ports + [self._reply] * (self._reply is not None):
            port.hear(())
        for inbound in list(self._inbound):
            self._drop(inbound)
        super().finish()


class Announcer(Worker):
    """Asks for nodes: at start, at each search interval, on demand, when an address of this machine or a release is new.

    One datagram for each release from each of our addresses, since a node answers only to its own release.
    """

    name = 'announcer'

    def __init__(self, sign, hosts, node_ports, ping_interval, multicast, listener):
        super().__init__()
        # Seconds between two searches: few where announcements to all are not heard.
        self.interval = min(ping_interval, DEAF_PING_INTERVAL) if listener.is_deaf else ping_interval
        self._sign, self._hosts, self._node_ports, self._listener = sign, hosts, node_ports, listener
        self.multicast = multicast
        self._wanted = threading.Event()  # ask now
        self._all = False                 # ask those too that have been asked before; any thread sets it
        self.releases = DISPY_RELEASES    # those that are asked for: replaced whole
        self.interfaces = []              # of this machine: replaced whole, by this thread, as are
        self.sources = []                 # the Interfaces from which it asks
        self._look_around()
        self._due = 0.0                   # monotonic time of the next search
        self._times = 0                   # searches so far
        self._failed = {}                 # (address, target) -> the error that was logged

    # --- any thread ---

    def scan(self, all_nodes=False):
        """Ask soon.  A node does not answer a sign that has opened it: `all_nodes` are asked under a new one."""
        self._all = self._all or all_nodes
        self._wanted.set()

    def release_heard(self, release):
        """A node of this release exists: ask for all others of it, if that is news."""
        if release and release not in self.releases and len(self.releases) < MAX_RELEASES:
            self.releases += (release,)  # if another thread adds one meanwhile, one is lost until it is heard again
            logger.info('dispy %s is heard for the first time; asking for its nodes', release)
            self.scan()

    def wake(self):
        self._wanted.set()

    # --- this thread ---

    def _look_around(self):
        self.interfaces = list_interfaces()
        known = self.interfaces or ([] if self._hosts else default_interfaces())
        self.sources = search_sources(self._hosts, known)
        # Where an address is its own broadcast address (a cloud's /32), dispy's programs must have it for themselves.
        own = self._hosts or [interface.address for interface in known if interface.broadcast != interface.address]
        self._listener.follow(own[:MAX_OWN], self.sources)

    def turn(self):
        before = self.sources
        self._look_around()
        if self._wanted.is_set() or time.monotonic() >= self._due or set(self.sources) - set(before):
            self._wanted.clear()
            self._times += 1
            self._due = time.monotonic() + min(self.interval, EARLY_PINGS.get(self._times, self.interval))
            sign, self._all = secrets.token_hex(20) if self._all else self._sign, False
            for source in self.sources:
                self._ask_from(source, sign)
            if self.stopping.wait(1.0):  # demands that come close together are one
                return
        self._wanted.wait(min(WATCH_INTERVAL, max(0.0, self._due - time.monotonic())))

    def _ask_from(self, source, sign):
        """Ask for nodes from this Interface's address, hence out of it."""
        ask = {'ip_addr': source.address.partition('%')[0], 'sign': sign, 'port': self._listener.reply_port}
        messages = [write_message(b'NODE_INFO:', dict(ask, version=release)) for release in self.releases]
        for target in search_targets(source, self.multicast):
            try:
                with socket.socket(family_of(source.address), socket.SOCK_DGRAM) as sock:
                    self._send_from(sock, source)
                    for node_port, message in itertools.product(self._node_ports, messages):
                        sock.sendto(message, socket_address(target, node_port))
                self._failed.pop((source.address, target), None)
            except (OSError, NodeError) as error:
                if self._failed.get((source.address, target)) != str(error):
                    self._failed[source.address, target] = str(error)
                    logger.warning('cannot ask for nodes from %s at %s: %s', source.address, target, system_error(error))

    @staticmethod
    def _send_from(sock, source):
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOPS)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, source.index)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, HOPS)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source.address))
        sock.bind(socket_address(source.address, 0))


# ---------------------------------------------------------------------------------------------------------------------
# Polling: when each node is due
# ---------------------------------------------------------------------------------------------------------------------

class _Due:
    """When a node is to be asked next; times are monotonic."""

    __slots__ = ('at', 'beat', 'failures', 'again', 'nudged')

    def __init__(self):
        self.at = math.inf       # the heap entry with this time counts; inf while it is being asked
        self.beat = None         # its next regular turn: it keeps its place within the interval
        self.failures = 0        # since its last answer
        self.again = False       # it is to be asked again as soon as it has been asked
        self.nudged = -math.inf  # when it was, or will be, asked because of an announcement


class Schedule:
    """When each node is to be asked next.  Nodes that failed last are kept apart, and are asked with growing pauses.

    Its lock guards everything in it; any thread may call.  Times are monotonic, so steps of the clock do not matter,
    and a time missed while the machine slept is made up for once.  Methods with _ are called with the lock held.
    """

    def __init__(self, interval, clock=time.monotonic, rand=random.random):
        self._interval = interval
        self._clock, self._rand = clock, rand
        self.earlier = lambda: None  # set by Admin: called when a node is due before all others
        self._lock = threading.Lock()
        self._nodes = {}             # id -> _Due
        self._heaps = [], []         # of (monotonic time, id): nodes that answered last, and others

    def add(self, node_id):
        """Ask this node from now on, first at once."""
        with self._lock:
            if node_id not in self._nodes:
                self._nodes[node_id] = due = _Due()
                self._put(node_id, due, self._clock())

    def remove(self, node_id):
        """Ask it no more."""
        with self._lock:
            self._nodes.pop(node_id, None)

    def ask_now(self, node_id):
        """Ask it at once, or once more if it is being asked."""
        with self._lock:
            self._hasten(node_id, self._clock())

    def ask_soon(self, node_id):
        """Ask it at once, but not more than once a second, nor so often while it fails: anybody can make us call this."""
        with self._lock:
            due, now = self._nodes.get(node_id), self._clock()
            if due and due.nudged <= now:
                due.nudged = max(now, due.nudged + min(2.0 ** due.failures, 16.0))
                self._hasten(node_id, due.nudged)

    def ask_in(self, node_id, seconds):
        """Ask it in so many seconds or a tick later, unless it is being asked, or will be before."""
        with self._lock:
            then = self._clock() + seconds + self.tick
            if node_id in self._nodes and then < self._nodes[node_id].at < math.inf:
                self._hasten(node_id, then)

    def _hasten(self, node_id, then):
        due = self._nodes.get(node_id)
        if due and due.at == math.inf:
            due.again = True
        elif due:
            self._put(node_id, due, then)

    @property
    def interval(self):
        """Seconds between two polls of a node."""
        return self._interval

    @interval.setter
    def interval(self, seconds):
        with self._lock:
            self._interval = seconds
            for node_id, due in self._nodes.items():
                due.beat = self._clock() + seconds * self._rand()
                if due.at < math.inf and not due.failures:
                    self._put(node_id, due, due.beat)

    @property
    def tick(self):
        """Seconds within which polls begin together."""
        rate = max(1, len(self._nodes)) / self._interval
        return min(max(LEAST_TICK, min(LONGEST_TICK, TICK_POLLS / rate)), self._interval / 2)

    def take(self, now, room, slow_room):
        """(ids of nodes that are due by `now`, ids of failing nodes that are), so many at most; finished() follows each."""
        with self._lock:
            return self._take(self._heaps[0], now, room), self._take(self._heaps[1], now, slow_room)

    def _take(self, heap, now, room):
        taken = []
        while len(taken) < room and self._first(heap) <= now:
            node_id = heapq.heappop(heap)[1]
            self._nodes[node_id].at, self._nodes[node_id].again = math.inf, False
            taken.append(node_id)
        return taken

    def _counts(self, entry):
        """Whether an entry of a heap is no stale one."""
        return entry[1] in self._nodes and self._nodes[entry[1]].at == entry[0]

    def _first(self, heap):
        """The time of the first entry in a heap that counts."""
        while heap and not self._counts(heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def lateness(self):
        """For how many seconds the node that is most overdue has waited; failing ones, and those being asked, are not."""
        with self._lock:
            return max(0.0, self._clock() - self._first(self._heaps[0]))

    def next_look(self):
        """When to take again (monotonic time), unless earlier() is called before."""
        with self._lock:
            return max(min(map(self._first, self._heaps)), self._clock() + self.tick)

    def finished(self, node_id, ok):
        """A node that was taken has answered, or not."""
        with self._lock:
            if node_id in self._nodes:
                self._next(node_id, self._nodes[node_id], ok)

    def _next(self, node_id, due, ok):
        now = then = self._clock()
        due.failures = 0 if ok else due.failures + 1
        if due.failures:
            then = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(due.failures - 1, 10))
        elif not due.again:
            if due.beat is None:  # its place: nodes that were found together are spread over the interval
                due.beat = now + self._interval * self._rand()
            else:
                # A turn that would be sooner is this one, taken a little early.
                soon = now + min(2 * self.tick, self._interval / 2)
                due.beat += self._interval * max(0, math.ceil((soon - due.beat) / self._interval))
            then = due.beat
        self._put(node_id, due, now if due.again else then)

    def _put(self, node_id, due, then):
        due.at = then
        heap = self._heaps[due.failures > 0]
        heapq.heappush(heap, (then, node_id))
        if heap[0][1] == node_id:
            self.earlier()
        if len(heap) > 100 + 4 * len(self._nodes):  # mostly stale entries: the interval was changed again and again
            heap[:] = sorted(set(filter(self._counts, heap)))


# ---------------------------------------------------------------------------------------------------------------------
# History: the last hours
# ---------------------------------------------------------------------------------------------------------------------

GIB = 2 ** 30
GAP = b'\xff'  # each byte of a sample that is missing: unpacked, it is what stands for a value that is not known, too

# A node at one moment: busy CPUs, available CPU in percent, available memory in GiB, number of its state, of STATES.  A
# half float has 11 bits, so that memory is right to 0.05 %, from 64 KiB to 64 TiB.
NODE_FIELDS, NODE_SAMPLE = ('busy', 'cpu', 'memory', 'state'), struct.Struct('<HBeB')
MOST_BUSY, MOST_MEMORY = 0xFFFE, 65504.0

# All nodes together: CPU is the mean, memory the sum over the nodes that tell.
CLUSTER_FIELDS = ('nodes', 'ready', 'unreachable', 'cpus', 'busy', 'cpu', 'memory')
CLUSTER_SAMPLE = struct.Struct('<5q2d')
SHOWN_AS = {'memory': lambda gib: int(gib * GIB), 'state': STATES.__getitem__}


def sample_node(node):
    """NODE_FIELDS of a NodeSnapshot, None where nothing is known: what a node told before it was lost is as old as that."""
    busy = cpu = memory = None
    if node.state in (READY, STOPPED):
        busy, (cpu, memory) = node.info.busy, (node.info.avail_info or (None, None))[:2]
    return (busy and min(busy, MOST_BUSY), cpu if cpu is None else int(cpu + 0.5),
            memory and min(memory / GIB, MOST_MEMORY), STATES.index(node.state))


def sample_cluster(snapshot):
    """CLUSTER_FIELDS of a Snapshot."""
    told = [node.info.avail_info for node in snapshot.nodes if node.state in (READY, STOPPED) and node.info.avail_info]
    cpus, memory = ([available[i] for available in told if available[i] is not None] for i in (0, 1))
    return [snapshot.totals[field] for field in CLUSTER_FIELDS[:5]] + [
        round(sum(cpus) / len(cpus), 1) if cpus else None, sum(memory) / GIB if memory else None]


def steady_time():
    """Seconds that no step of the clock changes; where the system counts them, they pass while the machine sleeps, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, 'CLOCK_BOOTTIME') else time.monotonic()


class Timeline:
    """Of each key the last `length` samples, one for each slot of `interval` seconds of steady_time(), with gaps where the
    program stood still.  One thread puts, any reads or forgets."""

    def __init__(self, interval, length, fields, record):
        self.interval = interval
        self.fields = fields
        self._length = length
        self._record = record  # struct.Struct of a sample
        self._unknown = record.unpack(GAP * record.size)
        # Number of the slot behind the last, and {key: bytes of its samples, the oldest first}: replaced whole.
        self._kept = 0, {}

    def put(self, now, sample):
        """Put sample(), {key: values, None where not known}, in the present slot if it is free; forget other keys."""
        slot, (end, kept) = int(now // self.interval), self._kept
        if slot < end:
            return
        gaps = GAP * self._record.size * min(slot - end, self._length)
        self._kept = slot + 1, {key: self._append(kept.get(key), gaps, values) for key, values in sample().items()}

    def _append(self, before, gaps, values):
        record = self._record.pack(*[none if value is None else value for value, none in zip(values, self._unknown)])
        return ((before + gaps if before else b'') + record)[-self._length * self._record.size:]

    def forget(self, key):
        """If this key comes back, its samples begin anew."""
        self._kept[1].pop(key, None)

    def read(self, key):
        """(number of the first slot, the values of each sample, None where not known)."""
        end, kept = self._kept
        rows = [[None if value == none or value != value else value for value, none in zip(row, self._unknown)]
                for row in self._record.iter_unpack(kept.get(key, b''))]
        return end - len(rows), rows


class History(Worker):
    """Keeps the last hours in memory: samples the table now and then, and shows what it has as the HTTP interface does."""

    name = 'history'

    def __init__(self, table, clock=time.time, steady=steady_time):
        super().__init__()
        self._table = table
        self._clock = clock    # dates what is shown: when it is set right, what was seen before is dated right, too
        self._steady = steady
        self._cluster = Timeline(CLUSTER_INTERVAL, CLUSTER_SAMPLES, CLUSTER_FIELDS, CLUSTER_SAMPLE)
        self._nodes = Timeline(SAMPLE_INTERVAL, SAMPLES, NODE_FIELDS, NODE_SAMPLE)
        self.forget = self._nodes.forget

    def turn(self):
        if not self.stopping.wait(CLUSTER_INTERVAL - self._steady() % CLUSTER_INTERVAL):
            self.sample()

    def sample(self):
        """Take the samples that are due."""
        now = self._steady()
        self._cluster.put(now, lambda: {'': sample_cluster(self._table.snapshot())})
        self._nodes.put(now, lambda: {key: sample_node(node) for key, node in self._table.published().items()})

    def cluster(self):
        """The history of all nodes together."""
        return self._shown(self._cluster, '')

    def node(self, node_id):
        """The history of a node; empty when there is no sample of it yet."""
        return self._shown(self._nodes, node_id)

    def _shown(self, timeline, key):
        """A column of values for each field, and when they were seen."""
        first, rows = timeline.read(key)
        now = self._clock()
        since = round(first * timeline.interval + now - self._steady(), 3) if rows else None
        shown = collections.OrderedDict(time=now, interval=timeline.interval, since=since)
        for number, field in enumerate(timeline.fields):
            show = SHOWN_AS.get(field, lambda value: value)
            shown[field] = [None if row[number] is None else show(row[number]) for row in rows]
        return shown


# ---------------------------------------------------------------------------------------------------------------------
# Plans and events: what is done to nodes, and what happens to them
# ---------------------------------------------------------------------------------------------------------------------

class Step:
    """What a plan does at each of its nodes.  It keeps nothing of a node, but decides by what is Seen then."""

    action = title = ''        # what the HTTP interface calls it, and what is done in a few words
    asked = {}                 # the fields of the request, as the HTTP interface names them
    key = None                 # the value of nodes that it sets, if it is one
    asks_node = True           # whether it needs the node itself
    lists_row = forgets_row = False  # whether it begins with a row that is not there, or ends with none
    needs_state = False        # whether it drains nodes, which is only done when it has been written down
    foretold, done = 'As it was set.', None  # sentences on what it will do, and has done, where it sends nothing
    plan, changes = None, {}   # the Plan that it undoes, and {id: Undo} of that

    def intend(self, seen, operation):
        """{key: Setting, Drain or None}: how the desired record changes.  Refusal."""
        return {}

    def choose(self, seen, edit):
        """([settings to send], sentence on what is left out or None), where the desired record was changed so:
        the CPUs where a drain changes."""
        return [in_force(seen.desired, seen.info)['cpus']] if 'drain' in edit else [], None

    def foresee(self, seen, edit):
        """The Foresight of it, where the desired record has been changed like that.  Refusal."""
        settings, left_out = self.choose(seen, edit)
        if left_out and not settings:
            raise Refusal(left_out)
        texts = []
        for setting in settings:
            try:
                texts.append(setting.foresee(seen).message)
            except Refusal:  # it depends on one that is sent before
                texts.append(setting.title)
        changes = settings or edit or self.lists_row or self.forgets_row
        return Foresight(None, ' '.join(texts) or self.foretold, not changes)

    def describe(self, before, seen, sent):
        """A sentence on what is now, where the node showed the Info `before`, and took these settings."""
        texts = [setting.describe(before, seen) for setting in sent]
        return ' '.join(collections.OrderedDict.fromkeys(texts)) or self.done or self.foresee(seen, {}).message

    def perform(self, admin, node_id):
        """What is done here, not at the node."""
        if self.forgets_row:
            admin.forget(node_id)

    def undone_by(self, plan):
        """The Step that undoes a plan of this one."""
        return (RelistStep if self.forgets_row else ForgetAgainStep if self.lists_row else UndoStep)(plan)


class SetStep(Step):
    """Set one thing.  A drained node keeps its 0 CPUs, and gets what is set on its return."""

    def __init__(self, setting):
        self.setting = setting
        self.action, self.title, self.asked, self.key = setting.action, setting.title, setting.asked, setting.key

    def intend(self, seen, operation):
        if self._is_overridden(seen):
            self.setting.foresee(seen)  # Refusal: the node is not there to refuse it
        return {} if self.setting.ends_now else {self.key: self.setting.of(operation)}

    def _is_overridden(self, seen):
        drain = seen.desired.get('drain')
        return self.key == 'cpus' and drain is not None and not drain.returning

    def choose(self, seen, edit):
        return [] if self._is_overridden(seen) else self.setting.steps(seen), None

    def foresee(self, seen, edit):
        foresight = self.setting.foresee(seen)
        if not self._is_overridden(seen):
            return foresight
        message = 'Stays drained; gets %s on its return.' % count_of(foresight.after, 'CPU')
        return foresight._replace(message=message, same=False)


class DrainStep(Step):
    """Take a node out of service: 0 CPUs, and what `then` says when it is idle."""

    action, title, key, needs_state = 'drain', 'Drain', 'cpus', True

    def __init__(self, by, then=None, note=None):
        self.then, self.note, self.by = then or STAY, note, str(by)
        self.asked = {'then': self.then, 'note': note}

    def intend(self, seen, operation):
        old = seen.desired.get('drain')
        had = old.had if old else seen.info.cpus
        if had is None:
            raise Refusal('Rejected: the node does not tell how many CPUs it has, '
                          'so they could not be given back.')
        idle = old.idle if old and not old.returning and old.then == self.then else None
        since = old.since if old else seen.ours
        return {'drain': Drain(since, self.then, self.note, self.by, had, idle, False, None, operation)}

    def foresee(self, seen, edit):
        info, text = seen.info, 'No job runs. '
        if info.busy:
            text = '%s to finish. ' % count_of(info.busy, 'running job')
        text += THEN_TEXTS[self.then]
        if self.then != END:
            text += ' On return: %s.' % count_of(returned_cpus(seen.desired, info).target(info) or 0, 'CPU')
        return Foresight(0, text, danger=self.then == END)

    def describe(self, before, seen, sent):
        return 'Accepts no new jobs. ' + THEN_TEXTS[self.then]


class ReturnStep(Step):
    """Bring a drained node back to the CPUs that are set, or that it had.  Pending where it does not answer."""

    action, title, key = 'return', 'Return to service', 'cpus'

    def intend(self, seen, operation):
        if 'drain' not in seen.desired:
            raise Refusal('Rejected: the node is not drained.')
        drain = seen.desired['drain']
        return {'drain': drain._replace(returning=True, idle=None, ended=None, operation=operation)}

    def foresee(self, seen, edit):
        cpus = returned_cpus(seen.desired, seen.info).target(seen.info)
        return Foresight(cpus, 'Returns to service with %s.' % count_of(cpus or 0, 'CPU'))

    def describe(self, before, seen, sent):
        return 'Back in service. ' + super().describe(before, seen, sent)


class UndoStep(Step):
    """Give nodes back what they had before a plan, as far as nobody has changed it since."""

    action, foretold, done = 'undo', 'Nothing is sent; only what is remembered changes.', 'Restored.'

    def __init__(self, plan):
        self.plan = plan
        self.changes = {node_id: change.undo for node_id, change in list(plan.changes.items()) if change.undo}
        self.asked, self.key = {'operation': plan.number}, plan.step.key
        keys = itertools.chain.from_iterable(undo.keys for undo in self.changes.values())
        self.needs_state = any(old and key == 'drain' for key, old, _ in keys)
        word, _, rest = plan.step.title.rpartition(': ')
        self.title = '%s: %s' % ('Redo' if word == 'Undo' else 'Undo', rest)

    def intend(self, seen, operation):
        edit, undo = {}, self.changes[seen.id]
        for key, old, made in undo.keys:
            if not is_same(seen.desired.get(key), made):
                continue  # somebody has changed it since
            if key != 'drain':
                edit[key] = old and old.of(operation, old.value)
            elif old is None:
                edit.update(ReturnStep().intend(seen, operation))
            else:  # where only its CPUs were changed, it is still the drain of the plan that made it
                number = old.operation if is_same(old, made) else operation
                edit[key] = old._replace(returning=False, idle=None, operation=number)
        drain, had = seen.desired.get('drain'), dict(undo.shown).get('cpus')
        if drain and edit.get('cpus', drain) is None:  # it gets on its return what it had before
            edit['drain'] = drain._replace(had=had)
        if not edit:
            raise Refusal('Skipped: changed since by another operation.')
        return edit

    def choose(self, seen, edit):
        wanted = in_force(seen.desired, seen.info)
        settings = {'cpus': wanted['cpus']} if 'drain' in edit else {}
        for key, had in self.changes[seen.id].shown:
            if key not in with_all_times(edit) or key == 'cpus' and 'drain' in seen.desired:
                continue
            if key in wanted and wanted[key].time != 'now':
                settings[key] = wanted[key]
            elif had is not None or key in TIME_KEYS:
                settings[key] = setting_back(key, had, seen.clock)
        return order_settings(settings, seen)

    def foresee(self, seen, edit):
        foresight = super().foresee(seen, edit)
        left = ', '.join(key for key, _, _ in self.changes[seen.id].keys if self.asks_node and key not in edit)
        also = ' Changed since, and left as it is: %s.' % left if left else ''
        return foresight._replace(message=foresight.message + also)


class ReapplyStep(Step):
    """Set again what should be in force and is not, of these keys.  What would end dispynode is left out."""

    action, title = 'reapply', 'Restore settings'

    def __init__(self, only=SETTING_KEYS):
        self.only = only

    def intend(self, seen, operation):
        if not seen.desired:
            raise Refusal('Rejected: nothing was set at this node.')
        return {}

    def choose(self, seen, edit):
        keys = with_all_times(differences(seen).keys() & self.only)
        return order_settings({key: setting for key, setting in in_force(seen.desired, seen.info).items()
                               if key in keys and setting.time != 'now'}, seen)

    def describe(self, before, seen, sent):
        return ' '.join(differences(seen).values()) or 'As it was set.'


class EndStep(Step):
    """Tell dispynode to exit at a node that is drained and idle, if it still is; only once."""

    action = title = 'end'

    def intend(self, seen, operation):
        drain = seen.desired.get('drain')
        if not is_due_to_end(drain) or seen.info.cpus or seen.info.busy:
            raise Refusal('The node is not idle any more.')
        return {'drain': drain._replace(ended=seen.ours)}

    def choose(self, seen, edit):
        return SetServiceTime('end', 'now').steps(seen), None


def is_due_to_end(drain):
    """Whether the node's dispynode is to be told to exit."""
    return drain is not None and drain.then == END and drain.idle and not drain.returning and not drain.ended


class AcceptStep(Step):
    """Take a node as it is: what was set at it is no longer remembered.  A drain stays."""

    action, title, asks_node, foretold = 'accept', 'Keep current values', False, 'Keeps its current values.'

    def intend(self, seen, operation):
        return {key: None for key in seen.desired if key != 'drain'}


class ForgetStep(AcceptStep):
    """Remove the row of a node until the node is seen again."""

    action, title, forgets_row = 'forget', 'Forget', True
    foretold = 'Removes the row until the node is seen again.'
    done = 'Forgotten. It comes back when it is seen again.'

    def intend(self, seen, operation):
        if 'drain' in seen.desired:
            raise Refusal('Rejected: the node is drained. Return it first.')
        return super().intend(seen, operation)


class RelistStep(UndoStep):
    """List nodes again that were forgotten, with what was set at them and has not been set anew."""

    asks_node, lists_row, foretold, done = False, True, 'Listed again.', 'Listed again.'

    def intend(self, seen, operation):
        return {key: old for key, old, _ in self.changes[seen.id].keys if key not in seen.desired}


class ForgetAgainStep(ForgetStep, UndoStep):
    """Remove rows again that were listed again."""

    action = UndoStep.action


class Actor(collections.namedtuple('Actor', 'address user via')):
    """Who acts: an address, or "console"; the user's name where the kernel tells it; the address of the proxy that
    tells the client's, or None."""

    __slots__ = ()

    def __str__(self):
        return (self.user or self.address) + (' (via %s)' % self.via if self.via else '')


Actor.__new__.__defaults__ = (None, None)
SYSTEM = Actor('dispyadmin')  # what dispyadmin does by itself, as it was told to before

# A node's part in a plan that has run: `before` and `after` are values of the node; `undo` gives it back, or None.
Change = collections.namedtuple('Change', 'id outcome before after message undo')
# ((key, what the desired record had, what the plan made of it), ...), and ((key, what the node showed), ...) of
# what the plan changed at it.
Undo = collections.namedtuple('Undo', 'keys shown')


class Plan:
    """A step that is done at nodes, each at its own time.  The journal's lock guards what changes meanwhile."""

    def __init__(self, number, step, ids, by, label=None):
        self.number = number
        self.step = step
        self.ids = list(collections.OrderedDict.fromkeys(ids))
        self.count = len(self.ids)
        self.by = by
        self.label = label        # what the one who asked calls it, to find it again while it runs
        self.began, self.ended = time.time(), None   # Unix times
        self.changes = {}         # id -> Change; copied whole before it is looked through
        self.shared = {}          # messages: many nodes say the same

    def share(self, text):
        """This text, as one object for all nodes that say it."""
        return self.shared.setdefault(text, text)

    def outcomes(self):
        """{outcome: how many nodes}."""
        return dict(collections.Counter(change.outcome for change in list(self.changes.values())))

    def summary(self):
        """Its JSON, without the changes."""
        step = self.step
        return {'operation': self.number, 'action': step.action, 'title': step.title, 'asked': step.asked,
                'by': self.by._asdict(), 'label': self.label, 'began': self.began, 'ended': self.ended,
                'nodes': self.count, 'done': len(self.changes), 'outcomes': self.outcomes(),
                'undo': self.can_undo()}

    def can_undo(self):
        """Whether there is something to give back."""
        return self.ended is not None and any(change.undo for change in list(self.changes.values()))


class Event(collections.namedtuple('Event', 'number time kind nodes count message plan by')):
    """Something that happened, to nodes or by somebody: a Unix time, one of EVENT_KINDS or 'action', ids
    (MAX_EVENT_NODES at most), how many nodes, a sentence, the Plan and the Actor, where there are such."""

    __slots__ = ()

    def json(self, most):
        """Its JSON, with so many changes at most."""
        value = {'number': self.number, 'time': self.time, 'kind': self.kind, 'nodes': list(self.nodes),
                 'count': self.count, 'message': self.message, 'by': self.by._asdict() if self.by else None}
        plan = self.plan
        if plan:
            changes = itertools.islice(list(plan.changes.values()), most)
            value.update(action=plan.step.action, asked=plan.step.asked, operation=plan.number,
                         outcomes=plan.outcomes(), undo=plan.can_undo(),
                         changes=[dict(zip(Change._fields[:5], change)) for change in changes])
        return value


Event.__new__.__defaults__ = (None, None)


class Journal:
    """The stream of events, and the plans that run or can be looked at.  Its lock guards all of it; any thread.

    Numbers begin at the time in milliseconds, so that no number of an earlier run is given again.  What is kept is
    bounded: MAX_EVENTS events with MAX_EVENT_NODES ids, and MAX_CHANGES changes of all plans together.
    """

    def __init__(self, clock=time.time):
        self._clock = clock
        self._lock = threading.Lock()
        self._events = collections.deque(maxlen=MAX_EVENTS)
        self._plans = collections.OrderedDict()  # number -> Plan
        self._rows = 0                           # changes in them
        self._numbers = itertools.count(int(clock() * 1000))
        self._counts = collections.Counter()     # kind -> how often it happened to a node
        self.listeners = []                      # called with each event of a node, outside the lock

    def number(self):
        """A number that no other plan or event has."""
        with self._lock:
            return next(self._numbers)

    def record(self, kind, nodes, message, by=None, plan=None):
        """Something happened to these nodes, or somebody did it.  The same, of many at one time, is one event."""
        with self._lock:
            now, last = self._clock(), self._events[-1] if self._events else None
            event = kept = Event(next(self._numbers), now, kind, tuple(nodes)[:MAX_EVENT_NODES], len(nodes),
                                 message, plan, by)
            if by is None:
                self._counts[kind] += len(nodes)
            if last and by is last.by is None and last.kind == kind and abs(now - last.time) < EVENT_TIME:
                self._events.pop()
                kept = event._replace(time=last.time, nodes=(last.nodes + event.nodes)[:MAX_EVENT_NODES],
                                      count=last.count + len(nodes))
            self._events.append(kept)
        for listener in self.listeners if by is None else ():
            listener(event)

    def act(self, by, action, message, nodes=(), asked=None, plan=None):
        """Somebody did something: an event, and a line in the log whose end is JSON."""
        self.record('action', nodes, message, by, plan)
        line = dict(action=action, by=by.address, user=by.user, via=by.via, asked=asked or {},
                    nodes=list(nodes)[:20], count=len(nodes), **(plan.outcomes() if plan else {}))
        logger.info('action %s', json.dumps(line))

    def begin(self, plan):
        """A plan begins to run."""
        with self._lock:
            self._plans[plan.number] = plan
            self._trim(plan)

    def change(self, plan, change):
        """A node's part in a plan is over; a late one may come after the plan's end."""
        with self._lock:
            if plan.number not in self._plans:
                return  # of the reconciler, or trimmed by now
            self._rows += change.id not in plan.changes
            plan.changes[change.id] = change
            undone = plan.step.plan
            if undone and change.id in undone.changes and change.outcome in ('done', 'pending'):
                undone.changes[change.id] = undone.changes[change.id]._replace(undo=None)
            self._trim(plan)

    def _trim(self, plan):
        """Drop the oldest plans that are over, but this one.  Lock held."""
        for old in list(self._plans.values()):
            if self._rows <= MAX_CHANGES and len(self._plans) <= MAX_EVENTS:
                break
            if old.ended and old is not plan:
                del self._plans[old.number]
                self._rows -= len(old.changes)
                old.changes, old.step.plan, old.step.changes = {}, None, {}  # an event may keep it

    def end(self, plan):
        """It is over: an event, and a line in the log."""
        plan.ended, plan.shared, plan.ids = self._clock(), {}, ()  # few changes will come
        self.act(plan.by, plan.step.action, plan.step.title, list(plan.changes), plan.step.asked, plan)

    def events(self):
        """Those that are kept, newest first."""
        with self._lock:
            return list(reversed(self._events))

    def counts(self):
        """{kind: how often it has happened to a node}."""
        with self._lock:
            return dict(self._counts)

    def plans(self):
        """Those that are kept, newest first."""
        with self._lock:
            return list(reversed(list(self._plans.values())))

    def plan(self, number):
        """The plan with this number; InputError when it is not kept any more, or of another run."""
        with self._lock:
            if number not in self._plans:
                raise InputError('operation: %s is not known (any more)' % printable(number)[:20])
            return self._plans[number]


# ---------------------------------------------------------------------------------------------------------------------
# Alerts: a program that is run when something happens to nodes
# ---------------------------------------------------------------------------------------------------------------------

ALERTED = (LOST, BACK, RESTARTED)  # kinds of events that --on_event is about, unless told otherwise
HAPPENED_TO_MANY = {LOST: 'are lost', BACK: 'answer again', RESTARTED: 'were started again', FOUND: 'are found',
                    OPENED: 'are opened', IMPERSONATED: 'show the signs of other nodes', DRIFTED: 'have drifted',
                    DRAINED: 'are drained'}


class Alert:
    """Events of one kind that are told in one run of the program.  Alerts' lock guards it while it waits."""

    def __init__(self, event):
        self.kind, self.time, self.message = event.kind, event.time, event.message
        self.since = time.monotonic()            # when it began to wait
        self.nodes = collections.OrderedDict()   # id -> None

    def json(self):
        """What the program reads, as one line."""
        ids, message = list(self.nodes), self.message
        if len(ids) > 1:
            message = '%d nodes %s; the last: %s' % (len(ids), HAPPENED_TO_MANY[self.kind], message)
        return encode_json(collections.OrderedDict(
            kind=self.kind, time=self.time, nodes=ids[:MAX_ALERT_NODES], count=len(ids), message=message)) + '\n'


class Alerts(Worker):
    """Runs the program of --on_event, one at a time.  Events of one kind that wait are told together, and at most once in
    ALERT_PAUSE; the order in which things happened to each node is kept."""

    name = 'alerts'

    def __init__(self, command, kinds):
        super().__init__()
        self.runs = self.failed = 0            # programs run, and those among them that failed; read by any thread
        self._command = find_program(command)
        self._kinds = frozenset(kinds or ALERTED)
        self._lock = threading.Lock()          # guards the next
        self._waiting = collections.deque()    # of Alert
        self._pauses = {}                      # kind -> monotonic time of its next run, at the earliest; this thread's alone

    def take(self, event):
        """An event of one node has happened.  Any thread."""
        if event.kind not in self._kinds:
            return
        node_id = event.nodes[0]
        with self._lock:
            alert = next((old for old in reversed(self._waiting) if old.kind == event.kind or node_id in old.nodes), None)
            if alert is None or alert.kind != event.kind:  # something else of this node waits behind those of its kind
                alert = Alert(event)
                self._waiting.append(alert)
            alert.nodes[node_id], alert.message = None, event.message
            is_slow = len(self._waiting) > MAX_ALERTS or sum(len(a.nodes) for a in self._waiting) > MAX_ALERT_IDS
            if is_slow:
                self._waiting.popleft()
        if is_slow:
            self.report_once('--on_event: the command is too slow; the oldest events are left out')

    def turn(self):
        with self._lock:
            alert = self._waiting[0] if self._waiting else None
            is_due = alert and time.monotonic() >= max(alert.since + GATHER_TIME, self._pauses.get(alert.kind, 0.0))
            if is_due:
                self._waiting.popleft()
        if is_due:
            self._pauses[alert.kind] = time.monotonic() + ALERT_PAUSE
            self._tell(alert)
        else:
            self.stopping.wait(LOOK_INTERVAL)

    def _tell(self, alert):
        """Run the program, and log what became of it."""
        self.runs += 1
        try:
            problem, printed = run_program(self._command, alert.json().encode('ascii'), self.stopping)
        except OSError as error:
            problem, printed = 'cannot be run: %s' % system_error(error).rstrip('.'), b''
        for line in printed.decode('utf-8', 'replace').splitlines():
            logger.debug('--on_event, %s: %s', alert.kind, line)
        if problem:
            self.failed += 1
            self.report_once('--on_event: the command %s (kind of event: %s); -d logs what it prints'
                             % (problem, alert.kind))


def run_program(command, data, stopping):
    """Run a program with these bytes as its standard input, for ALERT_TIME at most, or until an Event is set; what it leaves
    behind in its process group ends with it.  What went wrong, to follow "the command", or None, and the beginning of what
    it printed.  OSError when it cannot be started."""
    with subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          start_new_session=True) as process:
        try:
            printed = _serve(process, data, stopping)
            status = process.poll()
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):  # the first leaves what still runs a moment to end by itself
                with contextlib.suppress(ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(END_TIME / 2)
    if status is None:
        return None if stopping.is_set() else 'took more than %g seconds and was ended' % ALERT_TIME, printed
    how = 'ended with status %d' % status if status > 0 else 'was ended by signal %d' % -status
    return how if status else None, printed


def _serve(process, data, stopping):
    """Write to a program and read from it until it ends or must end; the beginning of what it printed."""
    expires, printed, is_over = time.monotonic() + ALERT_TIME, b'', False
    for pipe in (process.stdin, process.stdout):
        os.set_blocking(pipe.fileno(), False)
    while not is_over:
        is_over = process.poll() is not None or time.monotonic() > expires or stopping.is_set()
        try:
            data = data[process.stdin.write(data) or 0:]
        except (OSError, ValueError):  # it does not read, which is its own affair; or it has all, and the pipe is closed
            data = b''
        if not data:
            process.stdin.close()
        more = process.stdout.read(65536) or b''
        printed += more[:MAX_ALERT_OUTPUT - len(printed)]
        if not more:
            stopping.wait(0.05)  # no selector tells of the end of a program
    return printed


def find_program(command):
    """The words of a command, its program found.  StartError."""
    words = shlex.split(command)
    program = shutil.which(words[0])
    if program is None:
        raise StartError('--on_event: there is no program %s that can be run; enter its whole path'
                         % printable(words[0])[:200])
    if not hasattr(os, 'killpg'):
        raise StartError('--on_event: needs a POSIX system')
    return [os.path.abspath(program)] + words[1:]


# ---------------------------------------------------------------------------------------------------------------------
# Runner: what plans send to nodes, and what comes of it
# ---------------------------------------------------------------------------------------------------------------------

UNKNOWN_NODE = 'The node is not in the table; it may have been forgotten meanwhile.'
HAS_ENDED = 'dispynode exited; restart it on the node.'
STILL_RUNS = 'dispynode still runs: stop it on the node. %s'
NO_MORE = 'It does not answer any more; whether dispynode exited is not known.'
UNSURE = 'No reply after it was sent: the next poll shows whether the node took it.'
NOT_TAKEN = 'The node did not take it: no reply came, and it does not show it.'
NOT_REMEMBERED = (' Without --state, nothing remembers the drain after dispyadmin ends: the nodes then stay at 0 CPUs until '
                  'somebody sets them.')
UNCLEAR = "The node's reply makes no sense; see what it shows now."


def success(node_id, message, **values):
    """The result of what a node has done; `values` are those now in force there."""
    return dict(values, id=node_id, ok=True, outcome='done', message=message)


def failure(node_id, outcome, message):
    """The result of what did not work.  `outcome` is refused, unreachable, locked, pending, or unknown (no such row)."""
    return dict(id=node_id, ok=False, outcome=outcome, message=str(message))


class ResultCollector:
    """Collects the results of so many conversations.  The poller's thread puts, the one that asked waits."""

    def __init__(self, count):
        self._count = count
        self._results = {}  # written by the poller's thread, copied whole by the other
        self._is_over = threading.Event()

    def put(self, key, result):
        """One is over; its result is a dict, or None when there is nothing to say of it."""
        self._results[key] = result
        if len(self._results) >= self._count:
            self._is_over.set()

    def wait(self, seconds, stopping):
        """{key: result}, when all are there, the time is up, or the Event `stopping` is set (seen within 0.1 s)."""
        deadline = time.monotonic() + seconds
        while len(self._results) < self._count and time.monotonic() < deadline and not stopping.is_set():
            self._is_over.wait(0.1)
        return dict(self._results)


# How long an operation on many nodes may take before it is answered without those that are missing, in seconds.  Each
# conversation of a control has up to four exchanges; 5,000 dead nodes at the 384 places for slow ones take 52 s.
OPERATION_TIME = 120.0

LATE = 'No outcome yet after %d seconds; look again later.' % OPERATION_TIME


class Turn:
    """A plan at one of its nodes."""

    def __init__(self, plan, node_id, tell):
        self.plan = plan
        self.id = node_id
        self.tell = tell        # called once, with the id and the result; None from then on
        self.steps = None       # the generator in which it goes on
        self.before = None      # Info, as the node showed it when its turn came
        self.edit = {}          # how the desired record was changed ...
        self.replaced = {}      # ... and what was there
        self.sign = None        # the node's, when it was sent to
        self.taken = []         # Settings that the node took, with what it answered
        self.confirmed = set()  # (sign, title) of those that a look has shown after their reply was lost
        self.unsure = None      # Setting of which only the next polls tell whether the node took it
        self.is_last = True     # whether nothing is to be sent after that
        self.left_out = None    # sentence on what was left out, or refused
        self.is_partial = isinstance(plan.step, (UndoStep, ReapplyStep))  # whether some of it may be left out

    def undo(self, after):
        """What gives the node back what it had; `after` is its Info now, or None.  None when nothing was changed."""
        keys = dict(self.edit)
        if after and self.plan.step.asks_node and (keys or not self.is_partial):  # times that it moved or cleared besides
            keys.update((key, self.edit.get(key, self.replaced.get(key))) for key in TIME_KEYS
                        if not same_time(getattr(self.before, key), getattr(after, key)))
        shown = sorted(keys.keys() - {'drain'}) if self.plan.step.asks_node else ()
        drain = self.replaced.get('drain') or self.edit.get('drain')
        return Undo(tuple((key, self.replaced.get(key), value) for key, value in keys.items()),
                    tuple((key, drain.had if drain and key == 'cpus' else getattr(self.before, key)) for key in shown)
                    ) if keys or not self.plan.step.asks_node else None


class PlanRunner:
    """Makes plans, says what they would do, and runs them: the one way in which nodes are set.

    At each node one plan has its turn after the other.  A turn looks at the node, changes its desired record by what it is
    then, has that written down, sends, and looks again: so nothing comes in between, and what did not come about is taken
    back as it was.  A turn is a generator on the poller's thread, which yields where it waits for something.
    """

    def __init__(self, admin):
        self._admin = admin
        self._table, self._journal = admin.table, admin.journal
        self._schedule, self._poller = admin.schedule, admin.poller
        # Changed by the poller's thread alone.
        self._turns = {}     # id -> deque of Turns at this node, the first of which goes on
        self._watched = {}   # id -> Turns that wait for the node's next poll

    # --- for those who ask ---

    def plan(self, step, ids, by, label=None):
        """A Plan that does this step at these nodes."""
        return Plan(self._journal.number(), step, ids, by, label)

    def undo(self, number, by, label=None):
        """A Plan that gives the nodes of a plan back what each had.  InputError when there is nothing to give back."""
        original = self._journal.plan(number)
        if not original.can_undo():
            raise InputError('operation: there is nothing to undo in %d' % number)
        step = original.step.undone_by(original)
        return self.plan(step, step.changes, by, label)

    def drifted(self):
        """The ids of the nodes that are not as they were set."""
        return [node.id for node in self._table.managed() if node.drift]

    def is_busy(self, node_id):
        """Whether a plan has its turn at this node, or waits for it."""
        return node_id in self._turns

    def preview(self, plan):
        """What running this plan would do at each node, and where it would not: nothing is sent."""
        nodes, ours = self._table.snapshots(plan.ids), time.time()
        results = [self._foresee(plan, node_id, nodes.get(node_id), ours) for node_id in plan.ids]
        skipped = sum(not result['ok'] for result in results)
        text = '%d of %s will change%s.' % (sum(result['ok'] and not result['same'] for result in results),
                                            count_of(len(results), 'node'), ', %d skipped' % skipped if skipped else '')
        if plan.step.needs_state and not self._admin.reconciler.keeps_state:
            text += NOT_REMEMBERED
        return {'title': plan.step.title, 'text': text, 'danger': any(result.get('danger') for result in results),
                'results': results}

    def _foresee(self, plan, node_id, node, ours):
        step = plan.step
        if node is None and not step.lists_row:
            return failure(node_id, 'unknown', UNKNOWN_NODE)
        node = node or new_row(node_id, ours)
        edit, problem = self._intend(plan, node, ours)
        if problem:
            return problem
        try:
            foresight = step.foresee(node.seen(ours, merged(node.desired, edit)), edit)
        except Refusal as error:
            return failure(node_id, 'refused', error)
        return success(node_id, before=getattr(node.info, step.key) if step.key else None, **foresight._asdict())

    @staticmethod
    def _intend(plan, node, ours):
        """(edit, None) of a plan at a NodeSnapshot, or ({} or what is pending, failure)."""
        step, view = plan.step, node.view
        try:
            edit, refused = step.intend(node.seen(ours), plan.number), None
        except Refusal as error:
            edit, refused = {}, failure(node.id, 'refused', error)
        is_open = view['controllable'] or not step.asks_node
        if is_open or refused and node.state != UNREACHABLE and node.info is not NO_INFO:
            return edit, refused
        if edit.get('drain') and edit['drain'].returning:
            when = 'answers' if node.state == UNREACHABLE else 'can be controlled'
            return edit, failure(node.id, 'pending', 'Pending: done when the node %s. %s' % (when, view['reason']))
        outcome = node.state if node.state in (UNREACHABLE, LOCKED) else 'refused'
        return {}, failure(node.id, outcome, view['reason'] or NO_ADMIN_REASON)

    def run(self, plan):
        """Do it, and wait for the outcome: a result for each node."""
        collector = ResultCollector(len(plan.ids))
        self._journal.begin(plan)
        try:
            self.begin(plan, collector.put)
            found = self._admin.wait(collector)
            return [found.get(node_id) or failure(node_id, 'unreachable', LATE) for node_id in plan.ids]
        finally:
            self._journal.end(plan)

    def begin(self, plan, tell):
        """Let the plan run; `tell(id, result)` is called as each node is done with."""
        for node_id in plan.ids:
            turn = Turn(plan, node_id, tell)
            turn.steps = self._steps(turn)
            self._resume_soon(turn)

    # --- a turn, on the poller's thread ---

    def _resume_soon(self, turn, value=None):
        """Let a turn go on with this value.  Any thread."""
        nothing = (_ for _ in ())  # a conversation in which nothing is asked
        self._poller.submit(Talk('', 0, nothing, lambda *_: self._resume(turn, value)))

    def _resume(self, turn, value):
        try:
            turn.steps.send(value)
        except StopIteration:
            pass
        except Exception as problem:
            self._poller.report(problem)
            if turn.tell:  # else it was over
                if not turn.taken and turn.unsure is None:
                    self._take_back(turn)
                self._end(turn, failure(turn.id, 'unreachable', UNEXPECTED))

    def _talk(self, turn, steps, lane='asked'):
        """Have this conversation with the node; the turn goes on with (result, error)."""
        talk = self._admin.talk(turn.id, steps, lambda *outcome: self._resume(turn, outcome))
        self._poller.submit(talk, lane)

    def _watch(self, turn):
        """The turn goes on with the NodeSnapshot after the node's next poll, or None when there is no such row."""
        self._watched.setdefault(turn.id, []).append(turn)

    def polled(self, node_id):
        """A node has been asked: whoever waits for what it shows then goes on."""
        for turn in self._watched.pop(node_id, ()):
            self._resume(turn, self._table.get(node_id))

    def _steps(self, turn):
        """A turn from its beginning to its end: look, write down, send, look again."""
        turns = self._turns.setdefault(turn.id, collections.deque())
        turns.append(turn)
        if turns[0] is not turn:
            yield  # until those before it are over
        step, node = turn.plan.step, self._table.get(turn.id)
        if node is None and step.lists_row:
            self._admin.list_again(turn.id)
        elif node and step.asks_node:
            lane = 'asked_slow' if node.state == UNREACHABLE else 'asked'
            answer, error = yield self._talk(turn, self._admin.info_steps(turn.id), lane)
            self._admin.take(turn.id, answer, error)
        problem, unsaved = self._write_intent(turn), None
        if turn.edit:
            unsaved = yield self._admin.reconciler.when_saved(functools.partial(self._resume_soon, turn))
        drain = turn.edit.get('drain')
        if unsaved and drain and not drain.returning:
            yield from self._fail(turn, 'refused', unsaved)
        elif problem:
            self._end(turn, problem)
        elif step.asks_node:
            yield from self._set(turn)
        else:
            self._watched.pop(turn.id, None)  # what was left open is given up with it
            step.perform(self._admin, turn.id)
            self._end(turn, success(turn.id, step.describe(None, Seen(turn.id, turn.before, OWN_CLOCK, 0, {}), ())))

    def _write_intent(self, turn):
        """Change the desired record as the step says; a failure when nothing is to be sent."""
        while True:
            node = self._table.get(turn.id)
            if node is None:
                return failure(turn.id, 'unknown', UNKNOWN_NODE)
            edit, problem = self._intend(turn.plan, node, time.time())
            if not edit or self._table.edit(turn.id, edit, node.desired):
                turn.before, turn.edit, turn.replaced = node.info, edit, node.desired
                return problem

    def _set(self, turn):
        """The part of a turn that sends, until it is known what came of it."""
        while True:
            turn.unsure = None
            answer, error = yield self._talk(turn, self._converse(turn))
            if turn.unsure is None:
                self._admin.take(turn.id, answer, error)
                return (yield from self._conclude(turn, answer, error))
            if turn.unsure.ends_now:
                return (yield from self._watch_end(turn))
            # A look of its own: a poll may be under way that began before.
            looked = yield self._talk(turn, self._admin.info_steps(turn.id))
            self._admin.take(turn.id, *looked)
            node = self._table.get(turn.id)
            while node and node.state == UNREACHABLE:
                if turn.tell:  # the plan does not wait for it any longer
                    self._schedule.ask_now(turn.id)
                    self._end(turn, failure(turn.id, 'unreachable', UNSURE))
                node = yield self._watch(turn)
            if node is None:
                return (yield from self._fail(turn, 'unknown', UNKNOWN_NODE))
            if not node.controllable:
                outcome = LOCKED if node.state == LOCKED else 'refused'
                return (yield from self._fail(turn, outcome, node.reason or NO_ADMIN_REASON))
            if not self._is_taken(turn, node.seen(time.time())):
                return (yield from self._fail(turn, *('unreachable', NOT_TAKEN) if error else ('refused', UNCLEAR)))
            turn.taken.append(turn.unsure.of(turn.plan.number, getattr(node.info, turn.unsure.key)))
            turn.confirmed.add((turn.sign, turn.unsure.title))
            if turn.is_last or turn.tell is None:
                return self._succeed(turn, node)

    def _watch_end(self, turn):
        """dispynode was told to exit: it is gone, or it stays, as its schedule may have died.  A failed poll is no proof."""
        deadline = time.monotonic() + END_WAIT
        self._schedule.ask_now(turn.id)
        while True:
            node = yield self._watch(turn)
            answers = node is not None and node.state != UNREACHABLE
            was_restarted = answers and node.known.sign != turn.sign
            if node is None or node.is_gone or was_restarted:
                return self._end(turn, success(turn.id, HAS_ENDED))
            if answers and has_lost_schedule(node.info, node.clock.now(time.time())) or time.monotonic() > deadline:
                break
            self._schedule.ask_in(turn.id, 0.5)
        if answers:
            said = turn.unsure.describe(turn.before, node.seen(time.time()))
            return self._end(turn, failure(turn.id, 'refused', STILL_RUNS % said), node.info)
        return self._end(turn, failure(turn.id, 'unreachable', NO_MORE))

    @staticmethod
    def _is_taken(turn, seen):
        """Whether the node shows the setting that was sent last, and did not before, unless nothing was to change."""
        setting = turn.unsure
        if setting.drift(seen):
            return False
        if getattr(seen.info, setting.key) != getattr(turn.before, setting.key):
            return True
        try:
            return setting.foresee(seen._replace(info=turn.before)).same
        except Refusal:
            return False

    # --- what is sent ---

    def _converse(self, turn):
        """Conversation: send what is to be sent, and look again.  Returns an Answer; None where turn.unsure is set."""
        answer = Answer(self._table.look(turn.id).known, (self._table.get(turn.id) or NOTHING).info)
        for _ in range(3):  # a node that was started again is told again; the first answer to HH:MM may tell another zone
            if not answer.known.admin:
                break
            turn.sign, clock = answer.known.sign, self._table.look(turn.id).clock
            seen = Seen(turn.id, answer.info, clock, time.time(), self._table.look(turn.id).desired)
            settings, turn.left_out = turn.plan.step.choose(seen, turn.edit)
            settings = [setting for setting in settings if (turn.sign, setting.title) not in turn.confirmed]
            for setting in settings:
                turn.is_last = setting is settings[-1]
                value = yield from self._send(turn, setting, answer.known.code)
                if value is NOT_ADMIN:
                    return answer._replace(known=answer.known._replace(admin=False))
                if value is REFUSED:
                    turn.left_out = setting.refuse(answer.info)
                elif value is None or setting.ends_now:
                    turn.unsure = setting
                    return None
                else:
                    self._take(turn, setting, value.get(setting.key))
            if settings:
                answer = yield from self._look_again(turn, answer)
            is_told = answer.known.sign == turn.sign and not (turn.is_partial and self._table.look(turn.id).clock != clock)
            if is_told or any(setting.ends_now for setting in settings):
                break
        return answer

    @staticmethod
    def _send(turn, setting, code):
        """Conversation: send a setting, once.  Returns what read_control() makes of the reply; None where that makes no
        sense."""
        try:
            return read_control((yield Once(frame(code, setting.message()))))
        except WireError:
            return None
        except NodeError as error:
            turn.unsure = setting if error.is_sent else None
            raise

    def _look_again(self, turn, answer):
        """Conversation: what the node shows now.  Where it is gone after it took something, what it answered counts."""
        try:
            return (yield from self._admin.info_steps(turn.id, answer.known))
        except (NodeError, WireError):
            if not turn.taken:
                raise
            return answer._replace(info=answer.info._replace(**{setting.key: setting.value for setting in turn.taken}))

    def _take(self, turn, setting, value):
        """The node took a setting, and tells this value, which tells its zone or its clock where it is a time."""
        turn.taken.append(setting.of(turn.plan.number, value))
        if setting.key not in TIME_KEYS or None in (value, setting.time):
            return
        if setting.time == 'now':  # dispynode may have moved it by a day
            ahead = round(min((value + moved - time.time() for moved in (0, DAY, -DAY)), key=abs))
            if KEPT_CHECKS['ahead'](ahead) is None:
                return  # no clock: the state file could not be read again
            told = {'ahead': ahead if abs(ahead) > CLOCK_ERROR else 0}
        else:
            told = {'zone': zone_of(setting.time, value)}
        self._table.keep(turn.id, clock=self._table.look(turn.id).clock._replace(**told))

    # --- its outcome ---

    def _conclude(self, turn, answer, error):
        """The node has answered to all, or cannot be asked: the outcome is what it shows."""
        node = self._table.get(turn.id)
        if error:
            yield from self._fail(turn, 'unreachable', as_sentence(error))
        elif node is None:
            yield from self._fail(turn, 'unknown', UNKNOWN_NODE)
        elif not answer.known.admin:
            outcome = LOCKED if node.state == LOCKED else 'refused'
            yield from self._fail(turn, outcome, node.view['reason'] or NO_ADMIN_REASON)
        elif turn.left_out and not (turn.taken and turn.is_partial):
            yield from self._fail(turn, 'refused', turn.left_out, node.info)
        else:
            self._succeed(turn, node)

    def _fail(self, turn, outcome, message, after=None):
        """What was intended did not come about: the desired record is as it was, on disk as well, before that is said."""
        drain = turn.edit.get('drain')
        if drain and drain.returning and outcome in (UNREACHABLE, LOCKED):  # the reconciler goes on with it
            outcome, message = 'pending', 'Pending: done when the node answers. %s' % message
        elif turn.edit:
            self._take_back(turn)
            yield self._admin.reconciler.when_saved(functools.partial(self._resume_soon, turn))
        self._end(turn, failure(turn.id, outcome, message), after)

    def _take_back(self, turn):
        """The desired record is as it was before, unless a later plan has changed it."""
        self._table.edit(turn.id, {key: turn.replaced.get(key) for key in self._own(turn)})
        turn.edit = {}

    def _own(self, turn):
        """The keys of the desired record that are still as this turn has made them."""
        desired = self._table.look(turn.id).desired
        return [key for key, made in turn.edit.items() if is_same(desired.get(key), made)]

    def _succeed(self, turn, node):
        step, own, drain = turn.plan.step, self._own(turn), self._table.look(turn.id).desired.get('drain')
        taken = {setting.key: setting for setting in turn.taken}
        settled = {key: taken[key] for key in own if key in taken and turn.edit[key]}
        if drain and not drain.returning:
            settled.pop('cpus', None)  # the 0 CPUs of a drain are not what was set
        if 'drain' in own and turn.edit['drain'] and turn.edit['drain'].returning:
            settled['drain'] = None
        self._table.edit(turn.id, settled)
        turn.edit.update(settled)
        seen = node.seen(time.time(), self._table.look(turn.id).desired)
        message = ' '.join(filter(None, (step.describe(turn.before, seen, turn.taken), turn.left_out)))
        values = {key: getattr(seen.info, key) for key in set(taken) | {step.key} - {None}}
        self._end(turn, success(turn.id, message, **values), seen.info)

    def _end(self, turn, result, after=None):
        """A node, whose Info is `after` where that is known, is done with: its change goes into the journal, its result to
        the one who waits, and the next plan has its turn."""
        plan, key = turn.plan, turn.plan.step.key
        before = getattr(turn.before, key) if key and turn.before else None
        if result['ok']:
            result['before'] = before
        undo = turn.undo(after) if result['ok'] or turn.edit or after else None
        change = Change(turn.id, result['outcome'], before, result.get(key), plan.share(result['message']), undo)
        self._journal.change(plan, change)
        tell, turn.tell = turn.tell, None
        if tell is None:
            return  # its turn was over before
        turns = self._turns[turn.id]
        turns.popleft()
        if turns:
            self._resume_soon(turns[0])
        else:
            del self._turns[turn.id]
        tell(turn.id, result)


# ---------------------------------------------------------------------------------------------------------------------
# Admin: the operations
# ---------------------------------------------------------------------------------------------------------------------

class Admin:
    """What connects the parts, and starts and stops their threads.  It knows no HTTP.

    Operations wait for their outcome and return results: dicts with `id`, `ok`, `message` and values now in force.
    They raise InputError for values that cannot be, before any node is asked.
    """

    def __init__(self, settings):
        files = allow_many_files()
        self.settings = settings
        self.client_tls, self.server_tls = (tls_contexts(settings.certfile, settings.keyfile) if settings.certfile
                                            else (None, None))
        self.sign = secrets.token_hex(20)
        self.started = time.time()
        self.polls = self.polls_failed = 0  # written by the poller's thread, read by any
        self._request = write_message(b'NODE_INFO:', {'sign': self.sign})
        self.node_ports = [settings.node_port] if settings.node_port else [node for _, node in PORT_PAIRS]
        self.table = NodeTable(groups=settings.groups)
        self.schedule = Schedule(settings.poll_interval)
        self.journal = Journal()
        self.alerts = Alerts(settings.on_event, settings.events) if settings.on_event else None
        self.hosts = hosts = own_addresses(settings.hosts)
        reply_port = 0 if settings.reply_port is None and settings.http_port == REPLY_PORT else settings.reply_port
        self.listener = Listener(hosts, settings.info_port, reply_port, max(16, min(512, files // 8)),
                                 self.server_tls, self._heard)
        self.poller = Poller(max(16, min(1024, files // 2)), self.client_tls, self._due_talks,
                             self.schedule.next_look)
        self.schedule.earlier = self.poller.wake
        self.announcer = Announcer(self.sign, hosts, self.node_ports, settings.ping_interval,
                                   settings.ipv4_udp_multicast, self.listener)
        self.seeker = Seeker(settings.nodes, self)
        self.plans = PlanRunner(self)
        self.reconciler = Reconciler(self, settings.keep, StateFile(settings.state) if settings.state else None)
        self.history = History(self.table)
        self._workers = [self.poller, self.listener, self.announcer, self.seeker, self.reconciler, self.history]
        if self.alerts:
            self._workers.append(self.alerts)
            self.journal.listeners.append(self.alerts.take)
        self._doubted = set()          # ids of rows one of whose other addresses has announced another sign
        self._unasked = set()          # ids that announce themselves and cannot be asked; poller's thread alone
        self.diagnosed = {}            # sign -> [release] of nodes that are asked for it: what they announce lists nothing
        # Any thread changes these, each time by what takes effect as a whole.
        self.forgotten = collections.OrderedDict()  # ids that administrators forgot, until they are seen again
        self._meeting = set()          # ids of addresses that are being asked, or wait for it, and then get a row
        self._met = collections.Counter()  # how many there were at each address, of each id, in the present minute
        self._minute = 0.0             # monotonic time at which that began
        self._lock = threading.Lock()  # guards _secrets while it grows: Known.tried counts those at its beginning
        self._secrets = ['', settings.secret] if settings.secret else ['']

    def start(self):
        """Start the threads."""
        self.reconciler.restore()
        self.announcer.scan()
        for worker in self._workers:
            worker.start()

    def end(self):
        """Ask the threads to end; operations under way are answered with what there is."""
        for worker in self._workers:
            worker.end()

    def join(self, deadline):
        """Wait until the threads have ended, or until this monotonic time."""
        for worker in self._workers:
            worker.join(deadline)

    def discard(self):
        """Give everything up before start()."""
        self.listener.finish()
        self.poller.finish()

    # --- for readers ---

    def node(self, node_id):
        """The NodeSnapshot of a node; UnknownNode."""
        node = self.table.get(node_id)
        if node is None:
            raise UnknownNode('%s is not in the table of nodes' % printable(node_id)[:80])
        return node

    def is_finding(self):
        """Whether nodes that are known of have not been asked yet, or not been heard out."""
        return bool(self._meeting) or not self.seeker.has_looked or self.table.has_unasked()

    def is_well(self):
        """Whether all threads run, the poller has its turns, and no poll is far behind."""
        return (all(worker.is_alive() for worker in self._workers)
                and time.monotonic() - self.poller.last_turn <= LONGEST_TURN + LATE_TIME
                and self.schedule.lateness() <= max(3 * self.schedule.interval, LATE_TIME))

    def about(self):
        """What this program listens on and asks, as a dict."""
        return {'version': __version__, 'hosts': self.settings.hosts, 'node_ports': self.node_ports,
                'info_ports': [{'port': p.port, 'state': p.state} for p in self.listener.info_ports],
                'reply_port': self.listener.reply_port, 'own_port': self.listener.reply_port,  # as it was called in 1.0.0
                'asks': [{'address': source.address, 'to': target} for source in self.announcer.sources
                         for target in search_targets(source, self.announcer.multicast)],
                'poll_interval': self.schedule.interval, 'ping_interval': self.settings.ping_interval,
                'search_interval': self.announcer.interval,
                'secrets': len(self._secrets) - 1, 'tls': self.server_tls is not None,
                'multicast': self.settings.ipv4_udp_multicast,
                'fields': [{'key': field.key, 'title': field.title, 'unit': field.unit} for field in FIELDS]}

    # --- operations ---

    def scan(self, by=SYSTEM):
        """Ask for nodes on every interface, soon: forgotten ones too."""
        self.announcer.scan(all_nodes=True)
        self.journal.act(by, 'scan', 'Search for nodes')

    def set_interval(self, seconds, by=SYSTEM):
        """Poll each node every so many seconds."""
        if type(seconds) not in (int, float) or not LEAST_PAGE_INTERVAL <= seconds <= MOST_INTERVAL:
            raise InputError('interval: must be a number of seconds from %d to %d'
                             % (LEAST_PAGE_INTERVAL, MOST_INTERVAL))
        self.schedule.interval = seconds
        title = 'Set the poll interval to %g seconds' % seconds
        self.journal.act(by, 'poll_interval', title, asked={'interval': seconds})
        return seconds

    def poll(self, ids=None):
        """Ask these nodes (or all) right away, and say what each is now."""
        ids = list(collections.OrderedDict.fromkeys(self.table.ids() if ids is None else ids))
        errors = self.ask_all(self.table.snapshots(ids))
        nodes = self.table.snapshots(errors)
        return [failure(node_id, 'unknown', UNKNOWN_NODE) if node_id not in nodes else
                failure(node_id, 'unreachable', errors[node_id]) if errors[node_id] else
                success(node_id, 'Answers; it is %s.' % nodes[node_id].state) for node_id in ids]

    def add(self, host, port=None, by=SYSTEM):
        """Ask this host for dispynodes at this port, or at the usual ones, and list those that answer."""
        ports = [port] if port else self.node_ports
        try:
            ids = [format_id(address, number) for address in resolve(host) for number in ports]
        except NodeError as error:
            return [failure(format_id(host, ports[0]), 'unreachable', error)]
        found = self.ask_all(ids, create=True)
        results = [self._added(node_id, found[node_id]) for node_id in ids]
        good = [result for result in results if result['ok']]
        for result in good:
            self.list_again(result['id'])
        title = 'Add %s' % (format_id(host, port) if port else host)
        self.journal.act(by, 'add', title, [result['id'] for result in good], {'host': host, 'port': port})
        return good or results[:1]

    def _added(self, node_id, error):
        """The result of adding an address that has been asked: of the row that it is in now."""
        row = self.table.row(node_id)
        node = self.table.get(row)
        if error or not node:
            return failure(node_id, 'unreachable', error or 'It answers, but the table of nodes is full.')
        if row != node_id:
            return success(row, '%s shows the sign of this node: taken as another address of it.' % node_id)
        return success(row, node.view['reason'] or 'Found; it is %s.' % node.state)

    def add_row(self, address, port, **known):
        """A row for an address that has not answered yet, which is asked at once and from now on."""
        self.table.add(address, port, **known)
        self.schedule.add(self.table.row(format_id(address, port)))

    def list_again(self, node_id):
        """A row that is kept over restarts, for a node that may have been forgotten."""
        self.add_row(*split_id(node_id))
        self.forgotten.pop(node_id, None)
        self.table.keep(node_id, added=True)

    def forget(self, node_id):
        """Remove a row; it comes back when its node is seen again.  Poller's thread."""
        self.table.forget(node_id)
        self._unschedule(node_id)
        self.history.forget(node_id)
        self.forgotten[node_id] = None
        if len(self.forgotten) > MAX_FORGOTTEN:
            self.forgotten.popitem(last=False)

    def _unschedule(self, node_id):
        """A row is gone: ask it no more, unless another thread has listed it again."""
        self.schedule.remove(node_id)
        if node_id in self.table:
            self.schedule.add(node_id)

    def ids_of_group(self, name):
        """The ids of the nodes in a group.  InputError when there is no such group, or nothing in it."""
        if not any(group.name == name for group in self.settings.groups):
            raise InputError('group: there is no group %s' % printable(str(name))[:80])
        ids = [node.id for node in self.table.snapshot().nodes if name in node.groups]
        if not ids:
            raise InputError('group: no node is in %s' % name)
        return ids

    def add_secret(self, secret, by=SYSTEM):
        """Try a secret, from now on, on nodes that none has opened.  One result for each node that it opens."""
        if not isinstance(secret, str) or not secret:
            raise InputError('secret: must be a text that is not empty')
        if re.search('[\ud800-\udfff]', secret):
            raise InputError('secret: has characters that UTF-8 does not have')
        with self._lock:
            if secret not in self._secrets:
                if len(self._secrets) > MAX_SECRETS:
                    raise InputError('secret: %d secrets are known already, and no more are tried' % MAX_SECRETS)
                self._secrets.append(secret)
        locked = self.table.ids(LOCKED)
        self.ask_all(locked)
        opened = [success(node.id, node.view['reason'] or 'Unlocked.')
                  for node in self.table.snapshots(locked).values() if node.state in (READY, STOPPED)]
        self.journal.act(by, 'secret', 'Add an admin secret', [result['id'] for result in opened])
        return opened

    # --- asking nodes ---

    def ask_all(self, ids, create=False):
        """Ask all these addresses what they are, at the same time: {id: error or None}.  See ask()."""
        collector = ResultCollector(len(ids))
        for node_id in ids:
            self.ask(node_id, functools.partial(collector.put, node_id), create)
        return dict(dict.fromkeys(ids, LATE), **self.wait(collector))

    def ask(self, node_id, tell, create=False, lane=None):
        """Ask an address what it is, take() that, and call tell(error or None) on the poller's thread."""
        def done(answer, error):
            problem = UNEXPECTED
            try:
                self.take(node_id, answer, error, create)
                problem = error
            finally:
                self._meeting.discard(node_id)
                tell(problem)
        if create:
            self._meeting.add(node_id)
        is_lost = (self.table.get(node_id) or NOTHING).state == UNREACHABLE
        self.poller.submit(self.talk(node_id, None, done), lane or ('asked_slow' if is_lost else 'asked'))

    def wait(self, collector, seconds=OPERATION_TIME):
        """What has come into this collector in so many seconds, or until everything ends."""
        return collector.wait(seconds, self.poller.stopping)

    def find_client_secret(self, node_id):
        """For a diagnosis: (Answer, client secret of the node if that is known, None), or (None, None, error)."""
        collector = ResultCollector(1)

        def done(outcome, error):
            answer, secret = outcome or (None, None)
            try:
                self.take(node_id, answer, error)
            finally:
                collector.put(node_id, (answer, secret, error))
        steps = find_client_secret(self._request, self.table.look(node_id).known, self._secrets,
                                   functools.partial(self.table.may_send, node_id))
        self.poller.submit(self.talk(node_id, steps, done))
        late = NodeError('It did not answer all questions within %d seconds.' % SECRET_TIME)
        return self.wait(collector, SECRET_TIME).get(node_id, (None, None, late))

    def info_steps(self, node_id, known=None):
        """The conversation that asks what this node is, where it was opened like that (Known) last."""
        return ask_info(self._request, known or self.table.look(node_id).known, self._secrets,
                        functools.partial(self.table.may_send, node_id))

    def talk(self, node_id, steps, done):
        """A Talk with a node in these steps; None stands for info_steps(), made when it begins."""
        return Talk(*split_id(node_id), steps=self._converse(node_id, steps), done=done)

    def _converse(self, node_id, steps):
        """Conversation: these steps, begun without TLS where it is not known that the node uses it."""
        steps = steps or self.info_steps(node_id)
        if self.client_tls and self.table.look(node_id).error:
            steps = plain_first(self._request, steps)
        return (yield from steps)

    # --- what comes of it: the poller's thread ---

    def _due_talks(self, now, room, slow_room):
        """Polls that are due now.  Nothing here can fail: what was taken would not be given back."""
        return tuple([self.talk(node_id, None, functools.partial(self._polled, node_id)) for node_id in ids]
                     for ids in self.schedule.take(now + self.schedule.tick, room, slow_room))

    def _polled(self, node_id, answer, error):
        self.polls += 1
        self.polls_failed += error is not None
        try:
            self.take(node_id, answer, error)
        finally:
            if error:
                self.schedule.finished(node_id, False)

    def take(self, node_id, answer, error, create=False):
        """A node was asked: what came of it goes into the table and the schedule, and is told.

        With `create`, an address that answers gets a row.
        """
        try:
            if error:
                event = self.table.failed(node_id, as_sentence(error), isinstance(error, RefusedError))
            else:
                event = self.table.answered(node_id, answer, create)
            if create and not error and node_id in self.table:
                self.schedule.add(node_id)
                self.forgotten.pop(node_id, None)
            if event:
                self._tell(event, node_id)
            if event in (LOST, RESTARTED) or node_id in self._doubted:
                self._doubted.discard(node_id)
                for alias in self.table.drop_aliases(node_id):  # they may be nodes of their own now
                    self._meet(alias)
        finally:
            if error is None:
                self.schedule.finished(node_id, True)
            if node_id not in self.table:
                self._unschedule(node_id)
            elif error is None and self.table.look(node_id).is_ending:
                self.schedule.ask_in(node_id, 0.5)
            self.plans.polled(node_id)

    def _tell(self, event, node_id):
        node, row = self.table.get(node_id), self.table.row(node_id)
        if event == ALIAS:
            logger.info('%s shows the sign of %s: taken as another address of that node', node_id, row)
        elif node:
            what = 'is lost: %s' % node.view['reason'] if event == LOST else HAPPENED[event] + '.'
            logger.log(logging.WARNING if event == LOST else logging.INFO, '%s %s', node_id, what)
            self.journal.record(event, [node_id], '%s %s' % (node.label, what))

    # --- new addresses ---

    def _heard(self, address, announcement, connected):
        """An announcement came from this address.  Listener's thread."""
        address = self._speaker(address, announcement.ip_addr)
        node_id, named = format_id(address, announcement.port), named_id(announcement, address)
        logger.debug('%s from %s', announcement.tag, node_id)
        if announcement.sign == self.sign:
            return
        told = self.diagnosed.get(announcement.sign)
        if told is not None:
            told[:] = [announcement.version]
            return
        verdict, row = self.table.heard(node_id, announcement, named, connected)
        if verdict == SAME:
            self.announcer.release_heard(announcement.version)
        elif verdict == CHANGED:
            if row not in (node_id, named):
                self._doubted.add(row)  # first the row is asked: a node that was started again keeps its address
            self.schedule.ask_soon(row)
        elif announcement.tag != 'TERMINATED':
            self._meet(node_id, connected, announcement)

    def _speaker(self, address, claimed):
        """The address that an announcement speaks for: where it came from, whatever it says.

        But this machine may name another of its addresses: the kernel chooses from which one a connection comes.
        """
        with contextlib.suppress(ValueError):
            claimed = canonical(claimed or address)
            if claimed != address and self.is_own(address) and self.is_own(claimed):
                return claimed
        return address

    def is_own(self, address):
        """Whether this is an address of this machine."""
        return is_loopback(address) or any(interface.address == address for interface in self.announcer.interfaces)

    def reaches(self, address):
        """Whether a search reaches this address."""
        networks = [interface.network for interface in self.announcer.interfaces
                    if (interface.broadcast or ':' in interface.address)
                    and (not self.hosts or interface.address in self.hosts)]
        plain = ipaddress.ip_address(address.partition('%')[0])
        is_near = plain.is_link_local or any(plain in network for network in networks)
        return is_near or not networks or self.is_own(address)

    def _meet(self, node_id, connected=False, announcement=None):
        """Ask an address that is not in the table what it is, in due time.

        Bounded in all, and for each address in a minute: forged announcements must not make us knock at all ports.
        """
        address, now = split_id(node_id)[0], time.monotonic()
        if now - self._minute > 60 or len(self._met) > 8 * MAX_WAITING:
            self._minute, self._met = now, collections.Counter()
        full = len(self._meeting) >= MAX_WAITING * (1 + connected)  # a flood of datagrams keeps no connection out
        if full or node_id in self._meeting or self._met[address] >= MAX_MEETINGS or self._met[node_id] >= 4:
            return
        self._met.update((address, node_id))

        def met(error):
            if error:
                logger.debug('%s announced itself but cannot be asked: %s', node_id, error)
                if announcement:
                    self._list_unasked(node_id, announcement, error, connected)
            elif announcement and self.table.heard(node_id, announcement)[0] == SAME:
                self.announcer.release_heard(announcement.version)
                if not self.reaches(address):
                    self.table.keep(node_id, added=True)  # no search reaches it, and it may not announce itself again
        self.ask(node_id, met, create=True, lane='new')

    def _list_unasked(self, node_id, announcement, error, connected):
        """List what announces itself and cannot be asked, where its TLS, release or address is not as it is here.

        Only some, as anybody can announce anything: what names another address must have connected.
        """
        address, port = split_id(node_id)
        named = named_id(announcement, address)
        elsewhere = connected and isinstance(error, RefusedError) and named not in (None, node_id)
        strange = announcement.version and announcement.version not in DISPY_RELEASES
        if not (elsewhere or isinstance(error, MismatchError) or strange and isinstance(error, WireError)):
            return
        self._unasked = {known for known, node in self.table.snapshots(self._unasked).items()
                         if node.view['update_time'] is None}
        there = sum(split_id(known)[0] == address for known in self._unasked)
        if len(self._unasked) < MAX_UNASKED and there < MAX_UNASKED_EACH:
            self._unasked.add(node_id)
            self.add_row(address, port, version=announcement.version)
            self.table.failed(node_id, as_sentence(error))
            self.table.heard(node_id, announcement, named, elsewhere)


def named_id(announcement, speaker):
    """The id that an announcement names as its own, as anybody can; None when only the speaker's machine could reach it.
    The system is not asked for its interfaces: a flood of announcements must not cost that much."""
    with contextlib.suppress(ValueError):
        address = check_host(canonical(announcement.ip_addr), needs_interface=False)
        if not is_unscoped(address) and (is_loopback(speaker) or not is_loopback(address)):
            return format_id(address, announcement.port)
    return None


def as_sentence(error):
    """What a NodeError or WireError is to the administrator."""
    return 'Its answer is none that dispynode gives: %s.' % error if isinstance(error, WireError) else str(error)


def own_addresses(hosts):
    """The addresses of --host values, each of which this machine must have.  StartError."""
    result = []
    for host in hosts:
        try:
            found = resolve(host)
        except NodeError as error:
            raise StartError('--host %s: %s' % (host, error))
        usable = [address for address in found if is_bindable(address)]
        if not usable:
            raise StartError('--host %s: no interface of this machine that is up has the address %s'
                             % (host, ' or '.join(found)))
        is_name = host not in found and not host.startswith('localhost')
        if is_name and all(map(is_loopback, usable)):
            # Debian gives a machine's own name this address, at which no other machine can be heard
            logger.warning('--host %s is the loopback address %s; every interface is used instead', host, usable[0])
            return []
        result.extend(usable)
    return list(collections.OrderedDict.fromkeys(result))


def is_bindable(address):
    """Whether this machine has this address now."""
    with contextlib.suppress(OSError, NodeError):
        open_socket(socket.SOCK_DGRAM, address, 0).close()
        return True
    return False


def is_address(host):
    """Whether a host is given by its IP address, not by a name."""
    with contextlib.suppress(ValueError):
        return bool(canonical(host))
    return False


SEEK_THREADS = 64  # hosts that are looked for at one time: names may take long to resolve


class Seeker(Worker):
    """Looks for the nodes of --node until each has answered once; all have a row, and are polled, from the beginning."""

    name = 'seeker'

    def __init__(self, places, admin):
        super().__init__()
        self._admin = admin
        self._missing = set(places)  # (host, port or None); any thread
        self._rows = {}              # (host, port) -> id of the row that stands for it until one has answered
        self.has_looked = False      # whether it has looked for each of them; read by any thread

    def turn(self):
        hosts = sorted(self._missing, key=lambda place: not is_address(place[0]))  # names may take long
        run_parallel(self._seek, hosts, threads=SEEK_THREADS)
        self.has_looked = True
        self.stopping.wait(LONGEST_PAUSE / 2 if self._missing else None)

    def _seek(self, place):
        """List a host and ask whether there are nodes.  What goes wrong here is this host's alone."""
        (host, port), admin = place, self._admin
        try:
            ids = [format_id(address, number) for address in resolve(host)
                   for number in ([port] if port else admin.node_ports)]
            if is_address(host) and not admin.forgotten.keys().isdisjoint(ids):
                self._missing.discard(place)  # only what shows itself comes back
                return
            if place not in self._rows:
                self._rows[place] = ids[0]
                admin.add_row(*split_id(ids[0]))
            if port and len(ids) == 1:
                self._missing.discard(place)  # its row is polled, whatever it is
                return
            for node_id in ids:
                admin.ask(node_id, functools.partial(self._asked, place, node_id), create=True)
        except NodeError as error:
            if not self.has_looked:
                logger.warning('--node %s: %s It is tried again every %d seconds.', host, error, LONGEST_PAUSE / 2)
        except Exception as error:
            self.report(error)

    def _asked(self, place, node_id, error):
        """An address of a host has been asked.  Poller's thread."""
        table, row = self._admin.table, self._rows[place]
        if not error:
            self._missing.discard(place)
            if table.row(node_id) != row and table.look(row).error and not (table.get(row) or NOTHING).is_managed:
                table.forget(row)  # nothing is there, and nothing was set


# ---------------------------------------------------------------------------------------------------------------------
# Diagnosis: why a node is not there, or not as it should be
# ---------------------------------------------------------------------------------------------------------------------

# What is looked at, in this order; then `elsewhere` and `table`.
STEPS = ('name', 'route', 'connect', 'tls', 'protocol', 'version', 'secret', 'psutil')
OK, WARNING, FAILED, SKIPPED = 'ok', 'warning', 'failed', 'skipped'
MARKS = {OK: '+', WARNING: '!', FAILED: 'x', SKIPPED: '-'}

# One diagnosis takes at most RESOLVE_TIME, then three contacts that go on at all places at once, then for each node that
# is there TELL_TIME and SECRET_TIME; nearly always it is a second.
RESOLVE_TIME = 8.0             # seconds for the look-up of a name
CONTACT_TIME = 3.0             # seconds for a connection, for the beginning of TLS, and for what comes back
NUDGE_TIME = 1.0               # seconds of silence after which two ends of line are sent, as many programs wait for them
TELL_TIME = 2.0                # seconds in which a node tells its release, or announces itself
SECRET_TIME = 8.0              # seconds in which it is tried which secret opens it
MAX_DIAGNOSED = 4              # addresses of one name
MAX_DIAGNOSES = 4              # at one time: each has up to 4 addresses * 3 ports = 12 threads for some seconds
SILENT = 'No answer within %g seconds: the machine is off, or a firewall drops the port.' % CONTACT_TIME
LOOPBACKS = ('127.0.0.1', '127.0.1.1')  # where dispynode listens when the machine's own name stands for one of them

ADD_FIX = 'Add %(id)s here, or start dispyadmin with --node %(id)s: then it is asked whether broadcasts reach it or not.'
ADMIN_SECRET_FIX = ('Restart dispynode at %(id)s with an --admin_secret that differs from its --secret, and enter that '
                    '--admin_secret here.')
ROUTE_FIX = ('Check that %(address)s is on and in a network that this machine reaches; let TCP and UDP port %(port)d '
             'through its firewall and those on the way.')
FINDINGS = {  # cause: (step, state, message, fix or None)
    'no name': ('name', FAILED, '%(why)s', 'Enter an IP address instead of %(host)s, or add the name to DNS or to '
                '/etc/hosts of this machine; after a link-local address, name an interface of this machine.'),
    'an address': ('name', SKIPPED, '%(host)s is an address.', None),
    'a name': ('name', OK, '%(host)s stands for %(addresses)s.', None),
    'no route': ('route', FAILED, '%(address)s: %(why)s', ROUTE_FIX),
    'near': ('route', OK, '%(address)s is reached from %(source)s.', None),
    'far': ('route', OK, '%(address)s is reached from %(source)s, in another network: broadcasts do not get there, so add '
            'the node by hand or with --node.', None),
    'connected': ('connect', OK, '%(id)s takes connections.', None),
    'refused': ('connect', FAILED, '%(id)s: %(why)s', 'Start dispynode at %(id)s; if it runs there, it may listen at '
                '127.0.0.1 only or have another port: start it with -i and this address.'),
    'unreachable': ('connect', FAILED, '%(id)s: %(why)s', ROUTE_FIX),
    'no tls': ('tls', SKIPPED, 'Neither side uses TLS.', None),
    'tls': ('tls', OK, 'TLS works, and the certificate is the one of dispyadmin.', None),
    'tls here': ('tls', FAILED, 'It does not use TLS, and dispyadmin does.',
                 'Start dispynode at %(id)s with the same --certfile and --keyfile as dispyadmin.'),
    'tls there': ('tls', FAILED, 'It uses TLS, and dispyadmin does not.',
                  'Start dispyadmin with the --certfile and --keyfile of the nodes, or dispynode at %(id)s without.'),
    'certificate': ('tls', FAILED, 'It has another certificate than dispyadmin (%(why)s).', 'Start dispynode at %(id)s and '
                    'dispyadmin with the same --certfile; if it is the same, it may have expired.'),
    'dispynode': ('protocol', OK, 'It answers as dispynode does.', None),
    'stranger': ('protocol', FAILED, '%(why)s', 'Start dispynode at %(id)s with another port (-p), or enter its right '
                 'port: this one belongs to another program.'),
    'release': ('version', OK, 'It runs dispy %(release)s.', None),
    'strange release': ('version', WARNING, 'It runs dispy %(release)s; this dispyadmin was made for %(releases)s and may '
                        'not understand all of it.', None),
    'no release': ('version', SKIPPED, 'Its dispy release is not known: it does not tell while it runs jobs, when a '
                   'firewall keeps its answer from this machine, or if it is none from %(releases)s.', None),
    'trouble': ('secret', FAILED, '%(why)s', 'Restart dispynode at %(id)s; if that does not help, check which other program '
                'answers at this address.'),
    'alias': ('secret', OK, 'It is %(owner)s under another address; see there.', None),
    'impostor': ('secret', WARNING, 'It shows the same sign as %(owner)s, so no auth code is sent to it.', 'If %(owner)s is '
                 'the same node under another address, forget that row; else find the impostor.'),
    'admin secret': ('secret', OK, 'A known admin secret opens it.', None),
    'client secret': ('secret', WARNING, 'It has no --admin_secret, and a known secret is its client secret (--secret): it '
                      'can be seen but not controlled.', ADMIN_SECRET_FIX),
    'no admin secret': ('secret', WARNING, 'It has no --admin_secret: it can be seen but not controlled.', ADMIN_SECRET_FIX),
    'only client secret': ('secret', FAILED, 'A known secret is its client secret (--secret). Its --admin_secret is '
                           'another, or the same, which locks every admin out.', ADMIN_SECRET_FIX),
    'other secret': ('secret', FAILED, 'No known secret is its --admin_secret.', 'Enter the --admin_secret of dispynode at '
                     '%(id)s, on the page or as --secret: those known are others.'),
    'locked': ('secret', FAILED, 'No known secret opens it.', 'Enter the --admin_secret of dispynode at %(id)s, on the page '
               'or as --secret; if the node has none, restart it with one that differs from its --secret.'),
    'psutil': ('psutil', OK, 'psutil is there: it tells what is available.', None),
    'no psutil': ('psutil', WARNING, 'psutil is missing there, so it does not tell what is available.', 'Install psutil at '
                  '%(id)s (pip install psutil) and restart dispynode: then it tells its CPU, memory, swap and disk.'),
    'other port': ('elsewhere', WARNING, 'dispynode answers at %(ids)s.',
                   'dispynode answers at %(id)s: enter that port, or start dispyadmin with --node_port %(port)d.'),
    'loopback': ('elsewhere', WARNING, 'dispynode answers at %(ids)s.', 'dispynode listens at %(address)s only, where no '
                 "other machine reaches it: start it with -i %(own)s (check what the machine's own name stands for in "
                 '/etc/hosts).'),
    'announced': ('elsewhere', WARNING, 'The dispynode that announces itself from here listens at %(id)s.', ADD_FIX),
    'not elsewhere': ('elsewhere', SKIPPED, 'No dispynode answers at %(where)s either.', None),
    'listed': ('table', OK, 'It is listed as %(where)s; it is %(state)s.', None),
    'listed badly': ('table', WARNING, 'It is listed as %(where)s; it is %(state)s.%(why)s', None),
    'not listed': ('table', WARNING, 'It is not in the table of nodes.', ADD_FIX),
    'nothing listed': ('table', SKIPPED, 'It is not in the table of nodes.', None),
}


# The fix of the first step counts, as what comes later often follows from it.  But a node that is found elsewhere tells more
# than all that fails here, unless TLS differs: there it would, too.
FIX_RANKS = {'tls': 0, 'elsewhere': 1}


def run_parallel(call, items, seconds=None, threads=math.inf):
    """[call(item) for each item], on threads of their own, so many at one time.  None for those that are not done when so
    many seconds are over for each thread.  What a call raises is raised here, at the end."""
    count = min(len(items), threads)
    results, errors, waiting = [None] * len(items), [], collections.deque(enumerate(items))
    waiting.extend([None] * count)  # the end, for each thread

    def run():
        for number, item in iter(waiting.popleft, None):
            try:
                results[number] = call(item)
            except Exception as error:
                errors.append(error)
    running = [threading.Thread(target=run, name='parallel', daemon=True) for _ in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(seconds)
    if errors:
        raise errors[0]
    return list(results)


# --- one place ---

# What is found at an address and port: how far it came, in words of FINDINGS; the sentence of the system or of what speaks
# there; the sign of the dispynode that answers, or None.
Contact = collections.namedtuple('Contact', 'id address port causes why sign')
REACHED = ('connected', 'refused', 'unreachable')  # the first of its causes; the most telling first


def contact(admin, place):
    """Connect to a place (address, port), and see what speaks there: a Contact.  Any thread.

    Without TLS first, whatever is used here: a dispynode without it takes the beginning of TLS for a message of up to
    4 GB, and makes room for that.  Nothing secret goes where any certificate is taken.
    """
    distrusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    distrusting.check_hostname, distrusting.verify_mode = False, ssl.CERT_NONE
    contexts = {'no tls': None, 'tls there': distrusting}
    if admin.client_tls:
        contexts = {'tls here': None, 'tls': admin.client_tls, 'certificate': distrusting}
    found, said, why = functools.partial(Contact, format_id(*place), *place), b'', ''
    for cause, context in contexts.items():
        data, error = exchange(admin, place, context)
        sign = re.match(rb'\0\0\0\x28([0-9a-f]{40})', data or b'')
        if sign:
            return found(('connected', cause, 'dispynode'), why, sign.group(1).decode('ascii'))
        if data is None and context is None:
            why = (SILENT if isinstance(error, socket.timeout) else
                   connection_error(error) if isinstance(error, OSError) else error)
            return found(('refused' if isinstance(why, RefusedError) else 'unreachable',), why, None)
        said = said or data or b''
        why = getattr(error, 'verify_message', None) or getattr(error, 'reason', None) or error  # before Python 3.7
    return found(('connected', 'stranger'), what_speaks(said, error), None)


def exchange(admin, place, tls):
    """(the first 44 bytes that come back when NODE_INFO is asked with an auth code that opens nothing, None without a
    connection; what ended it, or None)."""
    data = None
    try:
        with socket.socket(family_of(place[0]), socket.SOCK_STREAM) as sock:
            sock.settimeout(CONTACT_TIME)
            sock.connect(socket_address(*place))
            data, more = b'', None
            with tls.wrap_socket(sock) if tls else sock as stream:
                stream.settimeout(NUDGE_TIME)
                stream.sendall(frame(NO_CODE, write_message(b'NODE_INFO:', {'sign': admin.sign})))
                deadline = time.monotonic() + CONTACT_TIME
                while more != b'' and len(data) < 44 and time.monotonic() < deadline:
                    try:
                        more = stream.recv(44 - len(data))
                        data += more
                    except socket.timeout:
                        if time.monotonic() >= deadline:
                            raise
                        stream.sendall(b'\r\n\r\n')
    except (OSError, NodeError) as error:
        return data, error
    return data, None


def what_speaks(data, error):
    """What speaks that sent this and no sign, in a sentence; `error` ended the connection, or nothing did."""
    line = re.match(b'[ -~]*', data.strip()).group().decode('ascii')
    return ('Another program answers there; it says "%s".' % line if line else
            'Another program answers there; it sends what no dispynode sends.' if data else
            'It takes the connection and then says nothing: it hangs, or it is another program.'
            if isinstance(error, socket.timeout) else
            'It closes the connection without an answer: it is another program.')


def source_for(address, port):
    """The address of this machine from which the kernel reaches another.  OSError, NodeError when there is no way."""
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
        sock.connect(socket_address(address, port))  # connecting a datagram socket sends nothing
        return peer_address(sock.getsockname())


# --- a dispynode that can be asked ---

def find_client_secret(request, known, secrets_, may_send):
    """Conversation: ask_info(), and where no secret opens the node as its admin, which one is its client secret.

    Returns (Answer, secret or None).  A control that does not exist tells: with the client secret it is answered with
    nothing, with any other secret by a refusal.
    """
    answer = yield from ask_info(request, known, secrets_, may_send)
    sign = answer.known.sign
    if answer.known.secret is None and may_send(sign):
        with contextlib.suppress(NodeError, WireError):  # what is known already will do
            for secret in tuple(secrets_):
                if read_control((yield frame(auth_code(secret, sign), NO_CONTROL))) is NOT_ADMIN:
                    return answer, secret
    return answer, None


def ask_release(admin, node, source):
    """The dispy release of the dispynode of this Contact, which is reached from our address `source`; None when it does
    not tell.

    A node answers to its own release alone, by an announcement to the one who asks: a dispy client's PING over TCP while
    it runs no jobs, and NODE_INFO as a datagram where its system lets it hear those that are sent to it alone.
    """
    own = (admin.hosts or [source])[0].partition('%')[0]
    ask = {'ip_addr': own, 'ip_addrs': [own], 'port': admin.listener.reply_port}
    told = admin.diagnosed.setdefault(node.sign, [])
    try:
        with socket.socket(family_of(node.address), socket.SOCK_DGRAM) as sock:
            for release in admin.announcer.releases:
                ping = frame(NO_CODE, write_message(b'PING:', dict(ask, version=release)))
                admin.poller.submit(Talk(node.address, node.port, (request for request in [ping]), lambda *_: None))
                with contextlib.suppress(OSError, NodeError):  # nothing there takes datagrams
                    info = write_message(b'NODE_INFO:', dict(ask, version=release))
                    sock.sendto(info, socket_address(node.address, node.port))
        return (wait_for(lambda: told) or [None])[0]
    finally:
        admin.diagnosed.pop(node.sign, None)


def wait_for(look):
    """What look() returns, as soon as there is something, or after TELL_TIME."""
    deadline = time.monotonic() + TELL_TIME
    while not look() and time.monotonic() < deadline:
        time.sleep(0.02)
    return look()


# --- all of a host ---

class Diagnosis:
    """Why there is no node, or none that works, at a host: run() looks at one thing after the other."""

    def __init__(self, admin, host, port, ask_running):
        self._admin, self._host, self._ask_running = admin, host, ask_running
        self._ports = [port] if port else admin.node_ports
        self._steps = []             # as HTTP shows them
        self._fixes = []             # (rank, sentence)

    def say(self, cause, **values):
        """Add one of FINDINGS; its sentences may name these values."""
        step, state, message, fix = FINDINGS[cause]
        values['host'] = self._host
        self._steps.append({'step': step, 'state': state, 'message': message % values})
        if fix:
            self._fixes.append((FIX_RANKS.get(step, 2), fix % values))

    @property
    def fix(self):
        """What helps, as a sentence; None when there is no problem."""
        return min(self._fixes, key=operator.itemgetter(0), default=(None, None))[1]

    def run(self):
        """What diagnose() returns of it."""
        addresses = self._find_addresses()
        sources = self._find_routes(addresses)
        contacts = self._contact(itertools.product(sources, self._ports))
        contacts.sort(key=lambda place: REACHED.index(place.causes[0]))
        nodes = [node for number, node in enumerate(contacts) if node.sign and
                 node.sign not in {other.sign for other in contacts[:number]}]  # else it has two addresses
        told = nodes or [place for place in contacts if place.causes[0] == 'connected'] or contacts
        for place in told:
            for cause in place.causes:
                self.say(cause, **place._asdict())
            if {'tls', 'no tls'} & set(place.causes):
                self._ask(place, sources[place.address])
        done = {step['step'] for step in self._steps}
        why = 'Not looked at, as it cannot be %s.' % ('asked' if told else 'reached')
        self._steps += [{'step': step, 'state': SKIPPED, 'message': why} for step in STEPS if step not in done]
        if told and not nodes:
            nodes = self._look_elsewhere(list(sources), told[0])
        if self._ask_running is None:
            self._look_in_table(nodes, addresses)
        return {'steps': self._steps, 'cure': self.fix, 'fix': self.fix, 'nodes': [node.id for node in nodes]}

    def _contact(self, places):
        return run_parallel(functools.partial(contact, self._admin), list(places))

    def _find_addresses(self):
        try:
            found = run_parallel(resolve, [self._host], RESOLVE_TIME)[0] or []
            why = 'No name server answers within %d seconds.' % RESOLVE_TIME
        except NodeError as error:
            found, why = [], error
        more = len(found) - MAX_DIAGNOSED
        told = found[:MAX_DIAGNOSED] + ['and %d more that are not looked at' % more] * (more > 0)
        self.say('no name' if not found else 'an address' if found == [self._host] else 'a name',
                 why=why, addresses=', '.join(told))
        return found[:MAX_DIAGNOSED]

    def _find_routes(self, addresses):
        """{address: our address from which it is reached}.  That there is no way to some of them matters only when there is
        none to any."""
        sources, errors = {}, {}
        for address in addresses:
            try:
                sources[address] = source_for(address, self._ports[0])
                self.say('near' if self._admin.reaches(address) else 'far', address=address, source=sources[address])
            except (OSError, NodeError) as error:
                errors[address] = error
        for address, error in () if sources else errors.items():
            self.say('no route', address=address, port=self._ports[0], why=system_error(error))
        return sources

    def _ask(self, node, source):
        """Find out the release of a dispynode, which secret opens it, and whether it has psutil."""
        row = self._row(node.id, node.sign)
        release = row and row.view['version'] or ask_release(self._admin, node, source)
        self.say('release' if release in DISPY_RELEASES else 'strange release' if release else 'no release', release=release,
                 releases='%s to %s' % (DISPY_RELEASES[0], DISPY_RELEASES[-1]))
        answer, client_secret, error = self._admin.find_client_secret(node.id)
        if error is not None:
            self.say('trouble', why=as_sentence(error), id=node.id)
            return
        known, owner = answer.known, self._admin.table.get(self._admin.table.owner(answer.known.sign))
        if owner and owner.id != node.id:
            cause = 'alias' if node.id in owner.view['addresses'] else 'impostor'
        elif known.secret is None:
            cause = 'locked' if client_secret is None else 'only client secret' if client_secret else 'other secret'
        else:
            cause = 'admin secret' if known.admin else 'client secret' if known.secret else 'no admin secret'
        self.say(cause, id=node.id, owner=owner and owner.id)
        if answer.info is not None:
            self.say('no psutil' if answer.info.avail_info is None else 'psutil', id=node.id)

    def _look_elsewhere(self, addresses, told):
        """The dispynodes at other ports, or at the loopback addresses if this is the machine; `told` is what was said first
        of the places that were asked for."""
        usual = {node_port for _, node_port in PORT_PAIRS} | set(self._admin.node_ports)
        others = sorted(usual - set(self._ports))
        own = [address for address in addresses if self._admin.is_own(address)]
        loopbacks = [address for address in LOOPBACKS if own and address not in addresses]
        places = itertools.chain(itertools.product(addresses, others),
                                 itertools.product(loopbacks, sorted(usual | set(self._ports))))
        found = [node for node in self._contact(places) if node.sign]
        if found:
            self.say('loopback' if found[0].address in loopbacks else 'other port', own=', '.join(own[:1]),
                     ids=', '.join(node.id for node in found), **found[0]._asdict())
        elif others or loopbacks:
            self.say('not elsewhere', where=' or '.join(['port %d' % port for port in others] + loopbacks))
        if not found and told.causes[0] == 'refused' and self._admin.reaches(told.address):
            self._look_for_announcement(told.id)
        return found

    def _look_for_announcement(self, node_id):
        """See whether a node listens at another address of this machine and announces itself from here.  Behind a firewall
        it is heard only by the dispyadmin that has the reply port."""
        def hear():
            row = self._admin.table.get(node_id)
            return row and row.view['announces']
        self._admin.announcer.scan()
        told = wait_for(hear)
        if not told and self._ask_running:
            with contextlib.suppress(StartError):
                told = {row['id']: row.get('announces') for row in self._ask_running()[1] or ()}.get(node_id)
        if told:
            self.say('announced', id=told)

    def _look_in_table(self, nodes, addresses):
        """Say as what these nodes are listed, or the places that were asked for."""
        places = ([(node.id, node.sign) for node in nodes] or
                  [(format_id(*place), None) for place in itertools.product(addresses, self._ports)])
        rows = [(place[0], row.view) for place in places for row in [self._row(*place)] if row]
        for node_id, view in rows:
            where = node_id if view['id'] == node_id else '%s, of which %s is another address' % (view['id'], node_id)
            why = ' ' + view['reason'] if view['reason'] and not self.fix else ''  # else it was said above
            good = view['state'] in (READY, STOPPED)
            self.say('listed' if good else 'listed badly', where=where, state=view['state'], why=why)
        if not rows:
            self.say('not listed' if nodes else 'nothing listed', id=places[0][0] if places else '')

    def _row(self, node_id, sign):
        """The NodeSnapshot of the row that stands for this id or has this sign, or None."""
        table = self._admin.table
        return table.get(table.row(node_id)) or table.get(table.owner(sign))


_diagnoses = threading.BoundedSemaphore(MAX_DIAGNOSES)


def diagnose(admin, host, port=None, ask_running=None):
    """Why is this host's node not there?  {'host', 'port', 'steps', 'cure' and 'fix', which are the same, 'nodes'};
    InputError when too many are asked.  Nothing is changed, but that rows of the table learn what their nodes answered.

    An admin that only looks has no table that means anything, and asks the dispyadmin that runs by `ask_running()`.
    """
    if not _diagnoses.acquire(timeout=RESOLVE_TIME):
        raise InputError('host: %d hosts are being diagnosed; try again in a moment' % MAX_DIAGNOSES)
    try:
        return dict(host=host, port=port, **Diagnosis(admin, host, port, ask_running).run())
    finally:
        _diagnoses.release()


# ---------------------------------------------------------------------------------------------------------------------
# Reconciler: what administrators set, kept over time and restarts
# ---------------------------------------------------------------------------------------------------------------------

class Reconciler(Worker):
    """Sends the difference between what should be in force at nodes and what they show; advances drains; saves the state.

    Drains are always enforced, settings with --keep.  A turn looks at each node by itself and waits for none: what goes
    wrong at a node is logged, and the others have their turn.
    """

    name = 'reconciler'

    def __init__(self, admin, keep, state_file):
        super().__init__()
        self._admin = admin
        self._keep = keep            # whether settings are restored without being asked
        self._state_file = state_file
        self.keeps_state = state_file is not None  # whether what is set outlives this program
        self._saved = None           # numbers of the changes that were saved last
        self._waiting = collections.deque()  # those who wait until what they changed is saved; any thread appends
        self._wakeup = threading.Event()
        self._look_at = 0.0          # monotonic time of the next look at all nodes
        self._drifted = {}           # id -> keys of its drift, as it was told
        self._tries = {}             # id -> (monotonic time from which it may be set again, seconds until the time after)

    def wake(self):
        self._wakeup.set()

    def finish(self):
        self._save()
        if self.keeps_state:
            self._state_file.close()

    def when_saved(self, then):
        """Call `then(problem)` when what is desired now is on disk; a sentence when it cannot be.  Any thread."""
        if not self.keeps_state:
            return then(None)
        self._waiting.append(then)
        self.wake()

    def turn(self):
        self._wakeup.wait(max(0.0, self._look_at - time.monotonic()))
        self._wakeup.clear()
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        problem = UNEXPECTED
        try:
            problem = self._save()
        finally:
            for then in waiting:
                then(problem)
        if problem:
            self.report_once(problem)
        if time.monotonic() >= self._look_at and not self.stopping.is_set():
            self._look_at = time.monotonic() + KEEP_INTERVAL
            self._look_at_all()

    def _look_at_all(self):
        nodes = {node.id: node for node in self._admin.table.managed()}
        for known in (self._tries, self._drifted):
            for node_id in known.keys() - nodes.keys():
                known.pop(node_id, None)
        for node in nodes.values():
            try:
                self._look(node)
            except Exception as error:
                self.report(error)

    def _look(self, node):
        """One node's turn."""
        keys, drain = sorted(node.drift), node.desired.get('drain')
        if keys and self._drifted.get(node.id) != keys:
            self._tell(node, 'has changed: %s' % ' '.join(node.drift.values()), DRIFTED)
        self._drifted[node.id] = keys
        if not keys and not drain:
            self._tries.pop(node.id, None)
        if self._admin.plans.is_busy(node.id):
            return
        step = self._advance(node, drain) if drain else None
        if step is None and keys and self._keep and node.view['controllable']:
            step = ReapplyStep()
        if step and self._may_try(node.id):
            plan = self._admin.plans.plan(step, [node.id], SYSTEM)
            self._admin.plans.begin(plan, functools.partial(self._tell_end, node, step))

    def _may_try(self, node_id):
        """Whether something may be set at this node again now; the pauses grow while that is of no use."""
        now = time.monotonic()
        due, pause = self._tries.get(node_id, (now, KEEP_PAUSE))
        if now < due:
            return False
        self._tries[node_id] = now + pause, min(2 * pause, LONGEST_KEEP_PAUSE)
        return True

    def _advance(self, node, drain):
        """The Step that a drained node needs now, or None."""
        info, controllable = node.info, node.view['controllable']
        if drain.ended and (node.is_gone or controllable and info.cpus):
            self._change(node, None, 'dispynode %s.' % ('is stopped' if node.is_gone else 'was stopped, and started again'))
        if drain.ended or not controllable:
            return None
        if not drain.idle or drain.then == END:
            self._admin.schedule.ask_in(node.id, KEEP_INTERVAL)
        if info.cpus != in_force(node.desired, info)['cpus'].target(info):
            if drain.idle:
                self._change(node, drain._replace(idle=None))  # it was started again, or somebody else gave it CPUs
            return ReapplyStep(('cpus',))
        if is_due_to_end(drain):
            return EndStep()
        self._tries.pop(node.id, None)
        if drain.returning:
            self._change(node, None, 'is back in service.')
        elif info.busy == 0 and not drain.idle:
            is_idle = {'returning': True} if drain.then == RESTORE else {'idle': time.time()}
            self._change(node, drain._replace(**is_idle),
                         'is drained: it stays out of service.' if drain.then == STAY else None)
        return None

    def _change(self, node, drain, event=None):
        """Change a node's drain, unless somebody has changed what is desired of it meanwhile; `event` tells of it."""
        if self._admin.table.edit(node.id, {'drain': drain}, node.desired) and event:
            self._tell(node, event)

    def _tell(self, node, event, kind=DRAINED):
        self._admin.journal.record(kind, [node.id], '%s %s' % (node.label, event))

    def _tell_end(self, node, step, node_id, result):
        """A plan of the reconciler is over at this node.  Poller's thread."""
        after = self._admin.table.get(node_id) or NOTHING
        if isinstance(step, ReapplyStep) and result['ok'] and after.drift.keys().isdisjoint(step.only):
            self._tries.pop(node_id, None)  # it helped: the next time is not delayed
        drain = after.desired.get('drain')
        is_idle = not after.info.cpus and not after.info.busy
        if isinstance(step, EndStep) and result['outcome'] == 'refused' and drain and drain.ended and is_idle:
            self._tell(node, 'is drained, but dispynode does not exit: stop it by hand.')

    # --- state ---

    def restore(self):
        """Take up what was saved.  Before the threads start.  StartError."""
        if not self.keeps_state:
            return
        nodes, forgotten = self._state_file.open()
        self._admin.forgotten.update((node_id, None) for node_id in forgotten)
        for node_id, kept in nodes.items():
            self._admin.add_row(*split_id(node_id))
            self._admin.table.keep(node_id, **kept)
        problem = self._save()  # a place where that cannot be is told now, not when it matters
        if problem:
            raise StartError(problem)

    def _save(self):
        """Write down what has changed since it was written last.  A sentence when that cannot be."""
        admin = self._admin
        changes = admin.table.changes(), list(admin.forgotten)
        if not self.keeps_state or changes == self._saved:
            return None
        try:
            self._state_file.write(state_json(admin.table.managed(), changes[1]))
        except OSError as error:
            return '--state %s: cannot be written. %s' % (printable(self._state_file.name), system_error(error))
        self._saved = changes
        return None

    def left_drained(self):
        """The ids of nodes that are at 0 CPUs and nothing remembers it when this program has ended."""
        return [] if self.keeps_state else sorted(node.id for node in self._admin.table.managed() if 'drain' in node.desired)


NO_FILE = 'It is a directory, a pipe or a device; give the name of a file'
OTHERS_FILE = 'It is used by another dispyadmin; give each its own file'


def replace_file(path, data, lock=None):
    """Make a file of these bytes, for its owner alone; until all of them are written, what was there stays.  Returns its
    open descriptor, which lock() has taken before the file is in its place.  OSError."""
    folder = os.path.dirname(path)
    number, temporary = tempfile.mkstemp(prefix='.dispyadmin-', dir=folder)  # mode 0600
    try:
        with open(number, 'wb', closefd=False) as file:
            file.write(data)
        os.fsync(number)
        if lock:
            lock(number)
        os.replace(temporary, path)
    except BaseException:
        os.close(number)
        os.unlink(temporary)
        raise
    with contextlib.suppress(OSError):  # that its name lasts, too: not every system can tell
        last = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(last)
        finally:
            os.close(last)
    return number


class StateFile:
    """The file of --state: JSON, replaced as a whole each time, locked by the dispyadmin that uses it, without secrets.

    Reading and writing are done on a thread of their own with a limit of time: the file may be on a mount that hangs.
    While one hangs there is no other.  One thread at a time may call it.
    """

    def __init__(self, name):
        self.name = name
        self._path = None           # its real one: a symbolic link stays
        self._held = None           # descriptor of the file as it is now, which holds the lock of the kernel
        self._working = threading.Lock()  # held while it is read or written

    def open(self):
        """({id: what is kept of a node}, forgotten ids); the file is ours from now on.  One that makes no sense is set
        aside, not overwritten.  StartError."""
        try:
            data = self._within(self._read)
        except OSError as error:
            raise StartError('--state %s: cannot be read. %s' % (printable(self.name), system_error(error)))
        if data is None:
            return {}, []
        try:
            return parse_state(data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, Error) as error:
            aside = '%s.damaged-%s' % (self._path, datetime.datetime.now().strftime('%Y%m%d-%H%M%S'))
            try:
                os.replace(self._path, aside)
            except OSError as problem:
                raise StartError('--state %s: is damaged, and cannot be set aside. %s' % (self.name, system_error(problem)))
            logger.warning('--state %s is damaged (%s); it is kept as %s, and a new one is begun', self.name,
                           printable(str(error))[:100] or type(error).__name__, aside)
            return {}, []

    def write(self, value):
        """Replace what is in it by this JSON.  OSError."""
        data = json.dumps(value).encode('ascii')
        if len(data) > MAX_STATE:
            raise OSError(errno.EFBIG, 'It would have more than %d bytes' % MAX_STATE)  # and not be read again
        self._within(functools.partial(self._replace, data))

    def close(self):
        """Give it up."""
        self._hold(None)

    def _within(self, call):
        """What `call()` returns or raises; OSError when it takes too long."""
        def work(_):
            with self._working:
                return [call()]
        found = None if self._working.locked() else run_parallel(work, [None], STATE_TIME)[0]
        if found is None:
            raise OSError(errno.ETIMEDOUT, 'It does not answer within %g seconds' % STATE_TIME)
        return found[0]

    def _read(self):
        """Its bytes, or None when it is new.  OSError."""
        self._path = os.path.realpath(self.name)
        try:
            self._hold(self._open_locked(os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            self._hold(self._open_locked(0))
            with open(self._held, 'rb', closefd=False) as file:
                return file.read(MAX_STATE + 1)
        except FileNotFoundError:
            pass  # no such folder: told when it is written
        return None

    def _open_locked(self, flags):
        """A descriptor of the file that holds its lock.  OSError."""
        try:
            number = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | flags, 0o600)
        except IsADirectoryError:
            raise OSError(errno.EINVAL, NO_FILE)
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise OSError(errno.EINVAL, NO_FILE)
            self._lock(number)
            if not self._is_at_path(number):
                raise OSError(errno.EBUSY, OTHERS_FILE)  # it has just been replaced
        except BaseException:
            os.close(number)
            raise
        return number

    def _is_at_path(self, number):
        return os.path.exists(self._path) and os.path.samestat(os.fstat(number), os.stat(self._path))

    def _replace(self, data):
        if self._held is not None and os.path.exists(self._path) and not self._is_at_path(self._held):
            os.close(self._open_locked(0))  # somebody has put another one there: not another dispyadmin's
        self._hold(replace_file(self._path, data, self._lock))

    def _lock(self, number):
        """Lock this descriptor.  OSError when another dispyadmin has the file."""
        try:
            if fcntl:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, OTHERS_FILE)
        except OSError as error:
            logger.debug('--state %s cannot be locked: %s', self.name, error)  # some network mounts

    def _hold(self, number):
        """Keep this descriptor, and its lock, instead of the one before."""
        before, self._held = self._held, number
        if before is not None:
            os.close(before)


def state_json(nodes, forgotten):
    """What stands in a state file of these NodeSnapshots."""
    return {'dispyadmin': 2, 'forgotten': forgotten, 'nodes': {
        node.id: {'added': node.added, 'zone': node.clock.zone, 'ahead': node.clock.ahead,
                  'settings': {key: {'action': setting.action, 'asked': setting.asked, 'value': setting.value,
                                     'operation': setting.operation}
                               for key, setting in node.desired.items() if key != 'drain'},
                  'drain': node.desired['drain']._asdict() if 'drain' in node.desired else None}
        for node in sorted(nodes, key=lambda node: node.id)}}


_stamp = functools.partial(_real, high=MAX_TIME)

# What each field in a state file may be: what its check returns as it is, which is None of those that are not NEEDED.
KEPT_CHECKS = {
    'zone': functools.partial(_integer, low=-14 * 3600, high=14 * 3600),
    'ahead': functools.partial(_integer, low=-100 * 366 * DAY, high=100 * 366 * DAY),
    'value': functools.partial(_real, low=-1, high=MAX_TIME),
    'operation': functools.partial(_integer, high=2 ** 53),
    'then': lambda value: value if value in THENS else None,
    'returning': lambda value: value if type(value) is bool else None,
    'since': _stamp, 'idle': _stamp, 'ended': _stamp, 'note': _text, 'by': _text, 'had': _cpus,
}
NEEDED = ('operation', 'then', 'returning', 'since', 'by')


def parse_state(data):
    """What a state file says, of this version or of 1.0: ({id: what is kept of the node}, forgotten ids).  ValueError,
    KeyError, TypeError, AttributeError, InputError."""
    if len(data) > MAX_STATE:
        raise ValueError('more than %d bytes' % MAX_STATE)
    value = json.loads(data.decode('utf-8'))
    if value['dispyadmin'] not in (1, 2):
        raise ValueError('of another version')
    nodes = {check_id(node_id): _read_kept(its if value['dispyadmin'] == 2 else _of_1_0(its))
             for node_id, its in value['nodes'].items()}
    return nodes, [check_id(node_id) for node_id in value['forgotten']][-MAX_FORGOTTEN:]


def _of_1_0(its):
    """What 1.0.0 wrote of a node, as it is written now."""
    drain = its['drain']
    if drain is not None:
        had = drain.pop('restore')
        if _integer(had, MAX_CPUS + 1) is not None:
            had = None  # 1.0.0 believed any number
        drain = dict(drain, note=None, returning=False, ended=None, operation=0, had=had)
    return dict(its, ahead=None, settings=its['wanted'], drain=drain)


def _read_kept(its):
    desired = {key: _read_setting(key, fields) for key, fields in its['settings'].items()}
    if its['drain'] is not None:
        desired['drain'] = Drain(**{key: _checked(key, value) for key, value in its['drain'].items()})
    clock = NodeClock(_checked('zone', its['zone']), _checked('ahead', its['ahead']))
    return {'added': its['added'] is True, 'clock': clock, 'desired': desired}


def _read_setting(key, fields):
    setting = SETTINGS[fields['action']](**fields['asked'])
    if setting.key != key:
        raise ValueError('the setting %s' % key)
    return setting.of(KEPT_CHECKS['operation'](fields.get('operation')), _checked('value', fields['value']))


def _checked(key, value):
    if KEPT_CHECKS[key](value) != value or value is None and key in NEEDED:
        raise ValueError('the field %s' % key)
    return value


def check_id(node_id):
    """`node_id` when format_id() can have made it, else ValueError."""
    address, port = split_id(node_id)
    if format_id(canonical(address), check_port(port)) != node_id:
        raise ValueError('%s is no id of a node' % printable(node_id)[:80])
    return node_id


# ---------------------------------------------------------------------------------------------------------------------
# Metrics: what Prometheus and its like read
# ---------------------------------------------------------------------------------------------------------------------
# The text exposition format, version 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/

METRICS_KIND = 'text/plain; version=0.0.4; charset=utf-8'
_writing = threading.Lock()    # held while metrics are written: 10,000 nodes make 10 MB


def write_metrics(admin):
    """All metrics as text."""
    with _writing:
        snapshot = admin.table.snapshot()
        return ''.join(write_metric(*metric) for metric in itertools.chain(
            _node_metrics([node.view for node in snapshot.nodes]), _own_metrics(admin, snapshot.totals)))


def write_metric(name, help_, samples):
    """HELP, TYPE and the samples, [(labels and suffix as text, number or None)] or one number; '' without any."""
    samples = samples if isinstance(samples, list) else [('', samples)]
    lines = ['%s%s %s\n' % (name, labels, '+Inf' if value == math.inf else value)
             for labels, value in samples if value is not None]
    kind = 'counter' if name.endswith('_total') else 'summary' if name.endswith('_duration_seconds') else 'gauge'
    return '# HELP %s %s\n# TYPE %s %s\n%s' % (name, help_, name, kind, ''.join(lines)) if lines else ''


def labelled(**labels):
    """{name="value",...} with the values escaped, in the order given."""
    return '{%s}' % ','.join(
        '%s="%s"' % (name, str(value).replace('\\', r'\\').replace('"', r'\"').replace('\n', r'\n'))
        for name, value in labels.items())


def by_label(label, numbers):
    """The samples of {value of the label: number}."""
    return [(labelled(**{label: value}), number) for value, number in numbers.items()]


def _node_metrics(views):
    nodes = [(labelled(node=view['id']), view) for view in views]
    live = [node for node in nodes if node[1]['state'] != UNREACHABLE]
    yield 'dispy_node_info', 'The name and dispy release of a node; always 1.', [
        (labelled(node=view['id'], name=view['name'] or '', version=view['version'] or ''), 1) for view in views]
    yield 'dispy_node_up', 'Whether it answered when it was asked last.', [
        (label, int(view['state'] != UNREACHABLE)) for label, view in nodes]
    yield 'dispy_node_state', 'The state of a node: 1 for the one that it is in, 0 for the others.', [
        ('%s,state="%s"}' % (label[:-1], state), int(view['state'] == state))
        for label, view in nodes for state in STATES]
    yield 'dispy_node_in_group', 'The groups (--group) that a node is in; always 1.', [
        (labelled(node=view['id'], group=group), 1) for view in views for group in view['groups']]
    for field in FIELDS:
        if field.metric:
            yield 'dispy_node_' + field.metric.name, field.metric.help, [
                (label, field.metric.value(field.of(view)))
                for label, view in (live if field.metric.live else nodes)]


def _own_metrics(admin, totals):
    """Sums over nodes, but not of counters: they would go down with a node that is forgotten.  Then how dispyadmin
    itself fares, and what the system tells of its process, under the customary names."""
    poller, (waiting, open_), alerts = admin.poller, admin.poller.load(), admin.alerts
    virtual = resident = files = most = None  # where there is no proc(5)
    with contextlib.suppress(OSError, ValueError, AttributeError), open('/proc/self/statm') as file:
        virtual, resident = [int(pages) * resource.getpagesize() for pages in file.read().split()[:2]]
        files, most = len(os.listdir('/proc/self/fd')), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return [
        ('dispy_nodes', 'Nodes in each state.', by_label('state', {state: totals[state] for state in STATES})),
        ('dispy_cpus', 'CPUs that dispy may use, of all nodes that answer.', totals['cpus']),
        ('dispy_busy_cpus', 'CPUs that run a job, of all nodes that answer.', totals['busy']),
        ('dispy_drifted_nodes', 'Nodes that are not as they were set here.', totals['drifted']),
        ('dispyadmin_build_info', 'Releases of dispyadmin and of its Python; always 1.',
         [(labelled(version=__version__, python=sys.version.split()[0]), 1)]),
        ('dispyadmin_polls_total', 'Polls of nodes that are over.', admin.polls),
        ('dispyadmin_polls_failed_total', 'Polls that were not answered.', admin.polls_failed),
        ('dispyadmin_exchange_duration_seconds', 'How long answered exchanges took, from connect to answer.',
         [('_sum', round(poller.answered_seconds, 6)), ('_count', poller.answered)]),
        ('dispyadmin_exchanges_failed_total', 'Exchanges with nodes that were not answered.', poller.failed),
        ('dispyadmin_open_exchanges', 'Exchanges with nodes that wait for an answer now.',
         by_label('kind', open_)),
        ('dispyadmin_max_open_exchanges', 'How many there may be at one time.', poller.places),
        ('dispyadmin_waiting_conversations', 'Conversations with nodes that wait for a place.',
         by_label('lane', waiting)),
        ('dispyadmin_poll_interval_seconds', 'Seconds between two polls of a node.', admin.schedule.interval),
        ('dispyadmin_info_port_held', 'Whether announcements to all are heard at this port now.',
         by_label('port', {port.port: int(port.state == 'held') for port in admin.listener.info_ports})),
        ('dispyadmin_events_total', 'How often nodes were found, lost, back, and so on.',
         by_label('kind', dict(dict.fromkeys(sorted(EVENT_KINDS), 0), **admin.journal.counts()))),
        ('dispyadmin_threads', 'Threads of dispyadmin.', threading.active_count()),
        ('dispyadmin_alerts_total', 'Runs of the program of --on_event.', alerts and alerts.runs),
        ('dispyadmin_alerts_failed_total', 'Runs of it that failed.', alerts and alerts.failed),
        ('process_start_time_seconds', 'Unix time at which dispyadmin was started.', round(admin.started, 3)),
        ('process_cpu_seconds_total', 'User and system CPU time that was spent.', round(time.process_time(), 3)),
        ('process_virtual_memory_bytes', 'Virtual memory size.', virtual),
        ('process_resident_memory_bytes', 'Resident memory size.', resident),
        ('process_open_fds', 'Open file descriptors.', files),
        ('process_max_fds', 'Most file descriptors that may be open.', most)]


# ---------------------------------------------------------------------------------------------------------------------
# The page: HTML, CSS and JavaScript, served as they stand
# ---------------------------------------------------------------------------------------------------------------------

DENIED_HTML = ('<!DOCTYPE html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,">'
               '<title>dispyadmin</title><h1>dispyadmin</h1><p>')

PAGE_HTML = r'''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>dispyadmin</title>
<link rel="icon" href="data:image/svg+xml,%3Csvg%20xmlns='http://www.w3.org/2000/svg'%20viewBox='0%200%2016%2016'%3E%3Crect%20width='16'%20height='16'%20rx='3.5'%20fill='%233f51b5'/%3E%3Cg%20fill='%23fff'%3E%3Crect%20x='3.5'%20y='3.5'%20width='4'%20height='4'%20rx='1'/%3E%3Crect%20x='8.5'%20y='8.5'%20width='4'%20height='4'%20rx='1'/%3E%3Crect%20x='3.5'%20y='8.5'%20width='4'%20height='4'%20rx='1'%20opacity='.55'/%3E%3Crect%20x='8.5'%20y='3.5'%20width='4'%20height='4'%20rx='1'%20opacity='.55'/%3E%3C/g%3E%3C/svg%3E">
<script>
// Below a path of a proxy without its last slash, what the page is made of would be looked for elsewhere.
if (/\/(admin(_node)?\.html)?$/.test(location.pathname)) document.write('<link rel="stylesheet" href="page.css"><script src="page.js" defer><\/script>');
else location.replace('./' + location.pathname.replace(/.*\//, '') + '/' + location.search + location.hash);
</script>
</head>
<body>

<!-- One shape for each state, so that colour is never the only sign. -->
<svg class="symbols" width="0" height="0" aria-hidden="true" focusable="false">
  <symbol id="shape-ready" viewBox="0 0 16 16"><circle cx="8" cy="8" r="5.5" fill="currentColor"/></symbol>
  <symbol id="shape-stopped" viewBox="0 0 16 16"><path d="M3.5 3h3.2v10H3.5zM9.3 3h3.2v10H9.3z" fill="currentColor"/></symbol>
  <symbol id="shape-locked" viewBox="0 0 16 16"><path d="M5 7V5.2a3 3 0 0 1 6 0V7" fill="none" stroke="currentColor" stroke-width="1.8"/><rect x="3" y="7" width="10" height="7" rx="1.2" fill="currentColor"/></symbol>
  <symbol id="mark-ok" viewBox="0 0 16 16"><path d="M3 8.5l3.2 3.2L13 4.8" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"/></symbol>
  <symbol id="mark-warning" viewBox="0 0 16 16"><path d="M8 2.5L14.5 13.5H1.5z" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linejoin="round"/><path d="M8 6.5v3.2m0 1.6v.4" stroke="currentColor" stroke-width="1.6" stroke-linecap="round"/></symbol>
  <symbol id="mark-failed" viewBox="0 0 16 16"><path d="M3.5 3.5l9 9m0-9l-9 9" fill="none" stroke="currentColor" stroke-width="2.4" stroke-linecap="round"/></symbol>
  <symbol id="mark-skipped" viewBox="0 0 16 16"><path d="M4 8h8" stroke="currentColor" stroke-width="2" stroke-linecap="round"/></symbol>
  <symbol id="shape-unreachable" viewBox="0 0 16 16"><path d="M3.5 3.5l9 9m0-9l-9 9" fill="none" stroke="currentColor" stroke-width="2.4" stroke-linecap="round"/></symbol>
  <symbol id="shape-drifted" viewBox="0 0 16 16"><path d="M8 2l6 6-6 6-6-6z" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linejoin="round"/><path d="M8 5.4v3.2m0 1.6v.4" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round"/></symbol>
</svg>

<a class="skip" href="#main">Skip to the nodes</a>
<a class="skip" href="#controls">Skip to the controls</a>

<header class="top">
  <span class="brand"><svg viewBox="0 0 16 16" aria-hidden="true" focusable="false"><g fill="currentColor"><rect x="1" y="1" width="6" height="6" rx="1.4"/><rect x="9" y="9" width="6" height="6" rx="1.4"/><rect x="1" y="9" width="6" height="6" rx="1.4" opacity=".5"/><rect x="9" y="1" width="6" height="6" rx="1.4" opacity=".5"/></g></svg>dispyadmin</span>
  <nav aria-label="Views">
    <a id="nav-cluster" href="admin.html">Admin Cluster(s)</a>
    <a id="nav-node" href="admin_node.html">Admin Node</a>
  </nav>
  <p id="freshness" class="freshness"></p>
  <div class="top-tools">
    <button type="button" id="events-button" class="quiet" aria-haspopup="dialog">Events</button>
    <button type="button" id="help-button" class="quiet" aria-haspopup="dialog" aria-label="Keyboard shortcuts" title="Keyboard shortcuts">?</button>
  </div>
</header>

<p id="banner" class="banner" role="status" hidden></p>

<main id="main" class="layout" tabindex="-1">

  <!-- ======== cluster view ======== -->
  <section id="totals" class="totals" aria-label="Totals" hidden>
    <div class="by-state" role="group" aria-label="Show nodes by state">
      <button type="button" id="total-nodes" data-state="" aria-pressed="true"><b>0</b> <span>nodes</span></button>
      <button type="button" id="total-ready" data-state="ready" aria-pressed="false"><b>0</b> <span class="state" data-state="ready"><svg aria-hidden="true"><use href="#shape-ready"/></svg>ready</span></button>
      <button type="button" id="total-stopped" data-state="stopped" aria-pressed="false"><b>0</b> <span class="state" data-state="stopped"><svg aria-hidden="true"><use href="#shape-stopped"/></svg>stopped</span></button>
      <button type="button" id="total-locked" data-state="locked" aria-pressed="false"><b>0</b> <span class="state" data-state="locked"><svg aria-hidden="true"><use href="#shape-locked"/></svg>locked</span></button>
      <button type="button" id="total-unreachable" data-state="unreachable" aria-pressed="false"><b>0</b> <span class="state" data-state="unreachable"><svg aria-hidden="true"><use href="#shape-unreachable"/></svg>unreachable</span></button>
      <button type="button" id="total-drifted" data-state="drifted" aria-pressed="false" title="Not as they were set here" hidden><b>0</b> <span class="mark"><svg aria-hidden="true"><use href="#shape-drifted"/></svg>drifted</span></button>
    </div>
    <dl class="sums">
      <div><dt>CPUs</dt><dd id="total-cpus">0</dd></div>
      <div><dt>busy</dt><dd id="total-busy">0</dd><dd class="bar" id="total-share" aria-hidden="true"></dd></div>
      <div><dt>jobs done</dt><dd id="total-jobs">0</dd></div>
      <div><dt>CPU time of finished jobs</dt><dd id="total-time">0 s</dd></div>
    </dl>
  </section>

  <section id="cluster" class="work" aria-labelledby="cluster-title" hidden>
    <h1 id="cluster-title" class="unseen" tabindex="-1">Admin Cluster(s)</h1>

    <details id="past" class="past">
      <summary>History</summary>
      <div id="past-charts" class="charts"></div>
      <p id="past-hint" class="hint"></p>
    </details>

    <div id="tools" class="tools">
      <label class="filter"><span class="unseen">Filter nodes</span>
        <input id="filter" type="search" placeholder="Filter: address, name, state, reason, version" autocomplete="off" spellcheck="false"></label>
      <span id="group-choice" class="sort" hidden><label for="group">Group</label>
        <select id="group"></select></span>
      <span class="sort"><label for="sort-by">Sort by</label>
        <select id="sort-by"></select>
        <button type="button" id="sort-direction" class="quiet" aria-label="Ascending; reverse the order"></button></span>
      <div class="count">
        <p id="count"></p>
        <button type="button" id="csv" class="quiet" aria-label="CSV: save the nodes shown" title="Save the nodes shown as a file for spreadsheets">CSV</button>
      </div>
    </div>

    <form id="drifted-form" class="notice drifted" novalidate hidden>
      <div class="line">
        <p id="drifted-text" class="grow"></p>
        <button id="reapply-all" class="main">Reapply all</button>
        <button type="button" id="accept-all">Accept all as they are</button>
      </div>
      <p id="drifted-error" class="error" role="alert"></p>
    </form>

    <div id="viewport" class="viewport" role="region" aria-label="Nodes" tabindex="0">
      <table id="nodes" role="table" aria-label="Nodes">
        <colgroup><col class="w-select"><col class="w-address"><col class="w-name"><col class="w-state"><col class="w-cpus"><col class="w-busy"><col class="w-cpu"><col class="w-memory"><col class="w-swap"><col class="w-disk"><col class="w-jobs"><col class="w-time"><col class="w-updated"></colgroup>
        <thead role="rowgroup">
          <tr role="row" class="over">
            <th role="columnheader" rowspan="2" class="c-select"><label class="hit"><span class="unseen">Select every node shown</span><input type="checkbox" id="select-all"></label></th>
            <th role="columnheader" rowspan="2" scope="col" data-sort="address"><button type="button">Address</button></th>
            <th role="columnheader" rowspan="2" scope="col" data-sort="name"><button type="button">Name</button></th>
            <th role="columnheader" rowspan="2" scope="col" data-sort="state"><button type="button">State</button></th>
            <th role="columnheader" rowspan="2" scope="col" data-sort="cpus" class="num"><button type="button">CPUs</button></th>
            <th role="columnheader" rowspan="2" scope="col" data-sort="busy" class="num"><button type="button">Busy</button></th>
            <th role="columnheader" colspan="4" scope="colgroup" class="span"><span>available</span></th>
            <th role="columnheader" rowspan="2" scope="col" data-sort="jobs" class="num"><button type="button">Jobs done</button></th>
            <th role="columnheader" rowspan="2" scope="col" data-sort="time" class="num"><button type="button">CPU time</button></th>
            <th role="columnheader" rowspan="2" scope="col" data-sort="updated" class="num"><button type="button">Last update</button></th>
          </tr>
          <tr role="row">
            <th role="columnheader" scope="col" data-sort="cpu" class="num"><button type="button">CPU</button></th>
            <th role="columnheader" scope="col" data-sort="memory" class="num"><button type="button">Memory</button></th>
            <th role="columnheader" scope="col" data-sort="swap" class="num"><button type="button">Swap</button></th>
            <th role="columnheader" scope="col" data-sort="disk" class="num"><button type="button">Disk</button></th>
          </tr>
        </thead>
        <tbody id="above" class="space" aria-hidden="true" hidden><tr><td colspan="13"></td></tr></tbody>
        <tbody id="rows" role="rowgroup"></tbody>
        <tbody id="below" class="space" aria-hidden="true" hidden><tr><td colspan="13"></td></tr></tbody>
      </table>
      <p id="no-match" class="no-match" hidden><span></span> <button type="button" id="filter-clear">Show all nodes</button></p>
    </div>

    <div id="empty" class="empty" hidden>
      <h2>No nodes yet</h2>
      <p>This page fills by itself as nodes are found; there is nothing to reload.</p>
      <h3>Start a node</h3>
      <p>On each machine that shall compute:</p>
      <pre><code id="empty-command">dispynode.py --admin_secret SECRET</code></pre>
      <p id="empty-secret"></p>
      <h3>How nodes are found</h3>
      <ul id="empty-ways"></ul>
      <p>A node in another network hears no broadcast: give its host name or address under <a id="empty-add" href="#add-host">Find nodes</a>.</p>
    </div>
  </section>

  <!-- ======== node view ======== -->
  <section id="node" class="work" aria-labelledby="node-title" hidden>
    <p class="back"><a href="admin.html">All nodes</a></p>
    <div class="node-head">
      <h1 id="node-title" tabindex="-1"></h1>
      <p id="node-name" class="node-name"></p>
      <span id="node-state" class="state"><svg aria-hidden="true"><use/></svg><span></span></span>
    </div>
    <div id="node-notice" class="notice" hidden><strong></strong> <span></span> <button type="button" id="node-why" aria-controls="node-diagnosis" hidden>Why?</button> <button type="button" id="node-add" hidden></button></div>
    <div id="node-diagnosis" class="panel diagnosis" role="region" aria-label="Diagnosis" hidden></div>
    <p id="node-drain" class="notice draining" hidden></p>
    <form id="drift-form" class="notice drifted" novalidate hidden>
      <h2><span class="mark"><svg aria-hidden="true"><use href="#shape-drifted"/></svg>drifted</span></h2>
      <ul id="drift-list"></ul>
      <div class="line">
        <button id="reapply" class="main" aria-describedby="drift-hint">Reapply</button>
        <button type="button" id="accept" aria-describedby="drift-hint">Accept as it is</button>
        <p id="drift-hint" class="hint grow">Reapply sets everything again that was set here. Accept forgets it, and leaves the node as it is.</p>
      </div>
      <p id="drift-error" class="error" role="alert"></p>
    </form>
    <div id="node-facts" class="facts"></div>
    <section id="node-past" class="panel" aria-labelledby="node-past-title">
      <h2 id="node-past-title">Last hours</h2>
      <div id="node-charts" class="charts"></div>
      <p id="node-past-hint" class="hint"></p>
    </section>
  </section>

  <section id="chooser" class="work chooser" aria-labelledby="chooser-title" hidden>
    <h1 id="chooser-title" tabindex="-1">Admin Node</h1>
    <p id="chooser-text"></p>
    <label class="filter"><span class="unseen">Filter nodes</span>
      <input id="choose-filter" type="search" placeholder="Filter: address, name, state" autocomplete="off" spellcheck="false"></label>
    <ul id="choose-list" class="choices"></ul>
    <p id="choose-more" class="hint"></p>
    <p class="back"><a href="admin.html">All nodes</a></p>
  </section>

  <!-- ======== controls: the same ones serve the selected nodes and the node view's one node ======== -->
  <aside id="controls" class="controls" tabindex="-1" aria-label="Controls">

    <section id="target" class="panel wide" aria-labelledby="target-title">
      <h2 id="target-title">Selected nodes</h2>
      <p id="target-hint" class="hint"></p>
      <fieldset id="target-fields" disabled aria-labelledby="target-title" aria-describedby="target-hint">
        <form id="service-form" novalidate>
          <h3>Service times</h3>
          <div class="line">
            <label class="field"><span>Control</span>
              <select id="service-control" aria-describedby="service-hint"><option value="start">Start</option><option value="stop">Stop</option><option value="end">End</option></select></label>
            <label class="field grow"><span>Time</span>
              <input id="service-time" type="text" placeholder="HH:MM" pattern="([01]?[0-9]|2[0-3]):[0-5][0-9]" maxlength="5" size="5" autocomplete="off" aria-describedby="service-hint service-error"></label>
            <button id="service-set">Set</button>
          </div>
          <div class="line">
            <button type="button" id="service-now">Now</button>
            <button type="button" id="service-clear">Clear</button>
          </div>
          <p id="service-error" class="error" role="alert"></p>
          <p id="service-hint" class="hint"></p>
        </form>
        <form id="cpus-form" novalidate>
          <h3>CPUs</h3>
          <div class="line">
            <label class="field grow"><span class="unseen">Number of CPUs</span>
              <input id="cpus" type="number" step="1" inputmode="text" autocomplete="off" aria-describedby="cpus-hint cpus-error"></label>
            <button id="cpus-set">Set</button>
            <button type="button" id="cpus-all">All</button>
          </div>
          <p id="cpus-error" class="error" role="alert"></p>
          <p id="cpus-hint" class="hint">&minus;2 leaves two of a machine&rsquo;s CPUs unused. Running jobs go on.</p>
        </form>
        <form id="clients-form" novalidate hidden>
          <h3>Clients to serve</h3>
          <div class="line">
            <label class="field grow"><span class="unseen">Number of clients to serve</span>
              <input id="clients" type="number" step="1" min="-1" inputmode="text" autocomplete="off" aria-describedby="clients-hint clients-error"></label>
            <button id="clients-set">Set</button>
          </div>
          <p id="clients-error" class="error" role="alert"></p>
          <p id="clients-hint" class="hint">After that many more clients the node program exits, and someone has to start it again by hand. 0 takes no more clients; &minus;1 serves without limit.</p>
        </form>
        <form id="drain-form" novalidate>
          <h3>Drain</h3>
          <div class="line">
            <label class="field grow"><span>When no job runs any more</span>
              <select id="drain-then" aria-describedby="drain-hint"><option value="restore">Give CPUs back</option><option value="end">End dispynode there</option><option value="stay">Stay without jobs</option></select></label>
            <button id="drain">Drain</button>
          </div>
          <p id="drain-error" class="error" role="alert"></p>
          <p id="drain-hint" class="hint">Takes no new jobs; running ones go on to their end.</p>
        </form>
      </fieldset>
      <form id="cancel-form" novalidate hidden>
        <div class="line">
          <button id="drain-cancel" aria-describedby="cancel-hint">Cancel drain</button>
          <p id="cancel-hint" class="hint grow"></p>
        </div>
        <p id="cancel-error" class="error" role="alert"></p>
      </form>
      <form id="forget-form" novalidate>
        <div class="line">
          <button id="forget" aria-describedby="forget-hint">Forget</button>
          <p id="forget-hint" class="hint grow">Off the list until it shows itself again.</p>
        </div>
        <p id="forget-error" class="error" role="alert"></p>
      </form>
    </section>

    <section class="panel" aria-labelledby="secret-title">
      <h2 id="secret-title">Admin secret</h2>
      <form id="secret-form" novalidate autocomplete="off">
        <div class="line">
          <label class="field grow"><span class="unseen">Admin secret</span>
            <input id="secret" class="masked" type="text" autocomplete="off" autocapitalize="none" spellcheck="false" data-1p-ignore data-lpignore="true" data-bwignore data-form-type="other" aria-describedby="secret-hint secret-error"></label>
          <button id="secret-set">Set</button>
        </div>
        <label class="check"><input id="secret-show" type="checkbox"> Show</label>
        <p id="secret-error" class="error" role="alert"></p>
        <p id="secret-hint" class="hint">Tried on locked nodes; open ones stay open. Set several one by one.</p>
      </form>
    </section>

    <section class="panel" aria-labelledby="poll-title">
      <h2 id="poll-title">Polling</h2>
      <form id="poll-form" novalidate>
        <div class="line">
          <label class="field grow"><span>Poll interval, seconds</span>
            <input id="poll-interval" type="number" min="5" step="1" inputmode="numeric" autocomplete="off" aria-describedby="poll-error"></label>
          <button id="poll-set">Set</button>
          <button type="button" id="poll-now">Now</button>
        </div>
        <p id="poll-error" class="error" role="alert"></p>
        <p class="hint" id="poll-hint"></p>
      </form>
    </section>

    <section id="find" class="panel" aria-labelledby="find-title">
      <h2 id="find-title">Find nodes</h2>
      <form id="scan-form" novalidate>
        <div class="line"><button id="scan">Scan</button><p class="hint grow">Asks every node in reach to show itself.</p></div>
        <p id="scan-error" class="error" role="alert"></p>
      </form>
      <form id="add-form" novalidate>
        <div class="line">
          <label class="field grow"><span>Host or address</span>
            <input id="add-host" type="text" autocomplete="off" autocapitalize="none" spellcheck="false" aria-describedby="add-error"></label>
          <label class="field short"><span>Port</span>
            <input id="add-port" type="text" inputmode="numeric" maxlength="5" placeholder="any" autocomplete="off" aria-describedby="add-error"></label>
          <button id="add-node">Add</button>
          <button type="button" id="diagnose" aria-describedby="diagnose-hint" aria-controls="diagnosis">Diagnose</button>
        </div>
        <p id="add-error" class="error" role="alert"></p>
        <p id="diagnose-hint" class="hint">Diagnose tells why a node is not in the table.</p>
      </form>
      <div id="diagnosis" class="diagnosis" role="region" aria-label="Diagnosis" hidden></div>
    </section>
  </aside>

  <section id="outcome" class="outcome" aria-label="Outcome" hidden>
    <div class="outcome-head">
      <p id="outcome-summary" role="status" aria-live="polite" tabindex="-1"></p>
      <div class="outcome-tools">
        <button type="button" id="outcome-retry" hidden>Retry failed</button>
        <button type="button" id="outcome-select" hidden>Select failed</button>
        <button type="button" id="outcome-undo" hidden>Undo</button>
        <button type="button" id="outcome-dismiss" class="quiet">Dismiss</button>
      </div>
    </div>
    <progress id="outcome-progress" aria-label="Nodes done" hidden></progress>
    <p id="outcome-error" class="error" role="alert"></p>
    <div id="outcome-groups" class="groups" hidden></div>
  </section>
</main>

<footer class="foot"><p id="about"></p></footer>

<dialog id="ask" aria-labelledby="ask-title" aria-describedby="ask-text">
  <h2 id="ask-title"></h2>
  <p id="ask-text"></p>
  <div id="ask-groups" class="groups" hidden></div>
  <div class="line">
    <button type="button" id="ask-no">Cancel</button>
    <button type="button" id="ask-yes" class="danger"></button>
  </div>
</dialog>

<dialog id="events" class="drawer" aria-labelledby="events-title">
  <div class="drawer-head">
    <h2 id="events-title" tabindex="-1">Events</h2>
    <button type="button" id="events-close" class="quiet">Close</button>
  </div>
  <p id="events-error" class="error" role="alert"></p>
  <p id="events-none" class="hint"></p>
  <ol id="events-list" class="events"></ol>
  <button type="button" id="events-more" hidden></button>
</dialog>

<dialog id="help" aria-labelledby="help-title">
  <h2 id="help-title" tabindex="-1">Keyboard shortcuts</h2>
  <dl class="keys">
    <div><dt><kbd>/</kbd></dt><dd>Filter the nodes</dd></div>
    <div id="help-group" hidden><dt><kbd>g</kbd></dt><dd>Choose a group</dd></div>
    <div><dt><kbd>j</kbd> <kbd>k</kbd></dt><dd>Next row, previous row; in the table <kbd>&darr;</kbd> <kbd>&uarr;</kbd> too</dd></div>
    <div><dt><kbd>Enter</kbd></dt><dd>Open the row&rsquo;s node</dd></div>
    <div><dt><kbd>x</kbd></dt><dd>Select the row, or not</dd></div>
    <div><dt><kbd>a</kbd></dt><dd>Select all nodes shown, or none</dd></div>
    <div><dt><kbd>n</kbd></dt><dd>Poll now</dd></div>
    <div><dt><kbd>e</kbd></dt><dd>Events</dd></div>
    <div><dt><kbd>Esc</kbd></dt><dd>Close what is open; else show all nodes; else select none</dd></div>
    <div><dt><kbd>?</kbd></dt><dd>This help</dd></div>
  </dl>
  <label class="check"><input id="keys-on" type="checkbox" checked> Use these keys in this browser</label>
  <div class="line"><button type="button" id="help-close">Close</button></div>
</dialog>

<template id="row">
  <tr role="row">
    <td role="cell" class="c-select"><label class="hit"><input type="checkbox"></label></td>
    <th role="rowheader" scope="row" class="c-address" data-col="address"><a></a></th>
    <td role="cell" class="c-name" data-col="name"></td>
    <td role="cell" class="c-state"><span class="state"><svg aria-hidden="true"><use/></svg><span></span></span><span class="why" hidden><span class="mark" hidden><svg aria-hidden="true"><use href="#shape-drifted"/></svg>drifted</span><button type="button" class="quiet add" hidden></button><span></span></span></td>
    <td role="cell" class="c-fact num" data-col="cpus" data-label="CPUs"></td>
    <td role="cell" class="c-fact num" data-col="busy" data-label="Busy"></td>
    <td role="cell" class="c-fact num meter" data-col="cpu" data-label="CPU free"></td>
    <td role="cell" class="c-fact num" data-col="memory" data-label="Mem. free"></td>
    <td role="cell" class="c-fact num meter" data-col="swap" data-label="Swap free"></td>
    <td role="cell" class="c-fact num" data-col="disk" data-label="Disk free"></td>
    <td role="cell" class="c-fact num" data-col="jobs" data-label="Jobs done"></td>
    <td role="cell" class="c-fact num" data-col="time" data-label="CPU time"></td>
    <td role="cell" class="c-updated num" data-col="updated"></td>
  </tr>
</template>

<noscript><p class="banner">This page needs JavaScript. Without it, use the same data as JSON at <a href="api/nodes">api/nodes</a>.</p></noscript>
</body>
</html>
'''

PAGE_CSS = r'''/* dispyadmin's page: a table first, everything else quiet around it. */

/* ======== Colours and measures ======== */

:root {
  color-scheme: light dark;
  --ground: #f4f5f7;
  --surface: #ffffff;
  --raised: #fafbfc;
  --line: #dfe2e8;
  --line-strong: #8b93a3;
  --text: #1b2130;
  --muted: #5a6375;
  --accent: #3d4fb0;
  --accent-text: #35459c;
  --on-accent: #ffffff;
  --tint: #eceffb;
  --ready: #17743f;
  --stopped: #55607a;
  --locked: #8a5300;
  --unreachable: #b3261e;
  --locked-tint: #fdf3e0;
  --unreachable-tint: #fcebe9;
  --ready-tint: #e6f4ea;
  --shadow: 0 1px 2px rgba(20, 28, 48, .06), 0 8px 28px rgba(20, 28, 48, .12);
  --gap: 1rem;
  --radius: .5rem;
}

@media (prefers-color-scheme: dark) {
  :root {
    --ground: #11141b;
    --surface: #181c25;
    --raised: #1d222d;
    --line: #2b3140;
    --line-strong: #6d7891;
    --text: #e4e8f0;
    --muted: #9aa5b9;
    --accent: #8c9cf5;
    --accent-text: #a9b6fb;
    --on-accent: #10131c;
    --tint: #232a42;
    --ready: #63cb8d;
    --stopped: #a9b4ca;
    --locked: #e6b45c;
    --unreachable: #f58d83;
    --locked-tint: #2e2616;
    --unreachable-tint: #341d1d;
    --ready-tint: #17291f;
    --shadow: 0 1px 2px rgba(0, 0, 0, .4), 0 8px 28px rgba(0, 0, 0, .5);
  }
}

/* ======== Ground ======== */

*, *::before, *::after { box-sizing: border-box; }
[hidden] { display: none !important; }

html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }

body {
  display: flex;
  flex-direction: column;
  min-height: 100vh;
  margin: 0;
  background: var(--ground);
  color: var(--text);
  font: .875rem/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}

h1, h2, h3, p, ul, dl, dd, pre { margin: 0; }
h1 { font-size: 1.375rem; line-height: 1.25; font-weight: 650; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: .875rem; font-weight: 650; }
h3 { font-size: .8125rem; font-weight: 600; }
a { color: var(--accent-text); text-decoration-thickness: 1px; text-underline-offset: .15em; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; font-size: .8125rem; }

.symbols { position: absolute; }
.unseen {
  position: absolute;
  width: 1px;
  height: 1px;
  overflow: hidden;
  clip-path: inset(50%);
  white-space: nowrap;
}

:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
h1:focus, main:focus { outline: none; }
#outcome-summary:focus { outline: none; }
#outcome-summary:focus-visible { outline: 2px solid var(--accent); }

.skip { position: absolute; left: var(--gap); top: -4rem; padding: .5rem .75rem; background: var(--surface); z-index: 9; border-radius: 0 0 var(--radius) var(--radius); }
.skip:focus { top: 0; }

.hint { color: var(--muted); font-size: .8125rem; line-height: 1.4; }
.error { color: var(--unreachable); font-size: .8125rem; font-weight: 500; }
.error:empty, .hint:empty { display: none; }

/* ======== Top ======== */

.top {
  display: flex;
  flex-wrap: wrap;
  align-items: center;
  column-gap: 1.75rem;
  padding: 0 var(--gap);
  background: var(--surface);
  border-bottom: 1px solid var(--line);
}
.brand { display: inline-flex; align-items: center; gap: .5rem; padding: .75rem 0; font-weight: 650; letter-spacing: -.01em; }
.brand svg { width: 1.125rem; height: 1.125rem; color: var(--accent); }
.top nav { display: flex; gap: .25rem; align-self: stretch; }
.top nav a {
  display: flex;
  align-items: center;
  min-height: 2.75rem;
  padding: 0 .625rem;
  color: var(--muted);
  text-decoration: none;
  border-bottom: 2px solid transparent;
  border-top: 2px solid transparent;
}
.top nav a:hover { color: var(--text); }
.top nav a[aria-current] { color: var(--text); font-weight: 600; border-bottom-color: var(--accent); }
.top nav a:focus-visible { outline-offset: -3px; }
.freshness { margin-left: auto; color: var(--muted); font-size: .8125rem; }
.top-tools { display: flex; gap: .25rem; margin-left: -1.25rem; }
#help-button { min-width: 2rem; }

.banner { padding: .5rem var(--gap); background: var(--locked-tint); color: var(--locked); border-bottom: 1px solid var(--line); font-weight: 600; }
.foot { padding: .625rem var(--gap) .75rem; color: var(--muted); font-size: .75rem; }
.foot:not(:has(p:not(:empty))) { padding-top: 0; }

/* ======== Layout ======== */

.layout {
  display: grid;
  flex: 1;
  grid-template-columns: minmax(0, 1fr);
  align-content: start;
  gap: var(--gap);
  width: 100%;
  padding: var(--gap);
}
.work { display: flex; flex-direction: column; gap: .75rem; min-width: 0; }
.controls { columns: 17rem; column-gap: var(--gap); margin-bottom: calc(-1 * var(--gap)); }
.controls > .panel { break-inside: avoid; margin-bottom: var(--gap); }

.panel { position: relative; padding: .75rem 1rem .875rem; background: var(--surface); border: 1px solid var(--line); border-radius: var(--radius); }
.panel > h2 { margin-bottom: .5rem; }

/* ======== Fields and buttons ======== */

button, input, select { font: inherit; color: inherit; }
input[type="text"], input[type="search"], input[type="number"], input[type="password"], select {
  width: 100%;
  height: 2rem;
  padding: 0 .5rem;
  background: var(--surface);
  border: 1px solid var(--line-strong);
  border-radius: .375rem;
}
input::placeholder { color: var(--muted); opacity: 1; }
.masked { -webkit-text-security: disc; }
input[aria-invalid] { border-color: var(--unreachable); box-shadow: 0 0 0 1px var(--unreachable); }
input[type="checkbox"] { width: 1rem; height: 1rem; margin: 0; accent-color: var(--accent); }

button {
  min-height: 2rem;
  padding: 0 .75rem;
  background: var(--raised);
  border: 1px solid var(--line-strong);
  border-radius: .375rem;
  font-weight: 500;
  white-space: nowrap;
  cursor: pointer;
}
button:hover { background: var(--tint); border-color: var(--accent); }
button:active { background: var(--line); }
button.quiet { border-color: transparent; background: none; color: var(--accent-text); padding: 0 .5rem; }
button.quiet:hover { background: var(--tint); }
button.danger { background: var(--unreachable); border-color: var(--unreachable); color: var(--surface); }
button.danger:hover { filter: brightness(1.08); }
button.main { background: var(--accent); border-color: var(--accent); color: var(--on-accent); }
button.main:hover { filter: brightness(1.08); }
:disabled, fieldset:disabled button { cursor: not-allowed; }
fieldset:disabled :is(button, input, select), button:disabled { color: var(--muted); border-color: var(--line); background: transparent; }
fieldset:disabled :is(h3, .hint, .field) { color: var(--muted); }

fieldset { min-width: 0; margin: 0; padding: 0; border: 0; }
form + form, fieldset + form { margin-top: .75rem; padding-top: .625rem; border-top: 1px solid var(--line); }
form > h3 { margin-bottom: .375rem; }
form > * + .hint, form > .error:not(:empty) { margin-top: .375rem; }
.line { display: flex; flex-wrap: wrap; align-items: end; gap: .5rem; }
.line + .line { margin-top: .5rem; }
.line > .hint { align-self: center; flex-basis: 8rem; }
.field { display: block; min-width: 0; }
.field > span:not(.unseen) { display: block; margin-bottom: .125rem; color: var(--muted); font-size: .75rem; }
.grow { flex: 1 1 5rem; }
.short { flex: 0 0 4.25rem; }
.check { display: inline-flex; align-items: center; gap: .5rem; min-height: 2rem; }
#target-hint { margin-bottom: .75rem; }

/* ======== Totals ======== */

.totals { display: flex; flex-wrap: wrap; gap: .75rem 2rem; align-items: center; justify-content: space-between; }
.by-state { display: flex; flex-wrap: wrap; gap: .375rem; }
.by-state button {
  display: inline-flex;
  align-items: baseline;
  gap: .375rem;
  min-height: 2.25rem;
  padding: .25rem .75rem;
  background: var(--surface);
  border-color: var(--line);
  font-weight: 400;
  align-items: center;
}
.by-state b { font-size: 1.0625rem; font-weight: 650; }
.by-state button:hover { border-color: var(--accent); }
.by-state button[aria-pressed="true"] { background: var(--tint); border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); }
.sums { display: flex; flex-wrap: wrap; gap: .25rem 1.75rem; }
.sums > div { position: relative; display: flex; flex-direction: row-reverse; align-items: baseline; gap: .375rem; padding-bottom: .125rem; }
.sums dt { color: var(--muted); font-size: .8125rem; }
.sums dd { font-size: 1.0625rem; font-weight: 650; }
.sums .bar { position: absolute; left: 0; right: 0; bottom: -.125rem; height: 3px; border-radius: 2px; background: var(--line); overflow: hidden; }
.bar::after { content: ""; display: block; height: 100%; width: calc(var(--share, 0) * 1%); background: var(--accent); }

/* ======== States ======== */

.state { display: inline-flex; align-items: center; gap: .3125rem; white-space: nowrap; color: var(--stopped); }
.state svg { width: .875rem; height: .875rem; flex: none; }
.state[data-state="ready"] { color: var(--ready); }
.state[data-state="locked"] { color: var(--locked); }
.state[data-state="unreachable"] { color: var(--unreachable); }

/* Not as it was set here: a word with a shape, beside whatever state the node is in. */
.mark { display: inline-flex; align-items: center; gap: .3125rem; white-space: nowrap; color: var(--locked); font-weight: 500; }
.mark svg { width: .875rem; height: .875rem; flex: none; }
.why .mark { margin-right: .5rem; vertical-align: bottom; }
.why .add { min-height: 0; margin-right: .5rem; padding: 0; font-weight: 500; }

/* ======== Tools above the table ======== */

.tools { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1rem; }
.filter { flex: 1 1 18rem; max-width: 30rem; }
.sort { display: inline-flex; align-items: center; gap: .5rem; }
.sort label { color: var(--muted); white-space: nowrap; }
.sort select { width: auto; }
#sort-direction { width: 2rem; padding: 0; margin-left: -.25rem; }
#sort-direction::before { content: "\2191"; }
#sort-direction[data-direction="descending"]::before { content: "\2193"; }
#group { max-width: 14rem; text-overflow: ellipsis; }
.count { display: flex; align-items: center; gap: .375rem; margin-left: auto; color: var(--muted); }

/* ======== Table ======== */

.viewport { position: relative; max-height: 72vh; overflow: auto; overflow-anchor: none; scroll-padding: 3.5rem 0 1rem; background: var(--surface); border: 1px solid var(--line); border-radius: var(--radius); }
/* So many rows fill it anyway: its size is the window's, and what changes in it moves nothing around it. */
.viewport.full { contain: strict; height: 72vh; }

#nodes {
  --row: 2.125;
  --bare: 2.125;
  --why: 1.25;
  width: 100%;
  min-width: 60rem;
  table-layout: fixed;
  border-collapse: separate;
  border-spacing: 0;
  font-size: .8125rem;
}
.w-select { width: 2.25rem; }
.w-address { width: 10.75rem; }
.w-state { width: 7rem; }
.w-cpus, .w-busy { width: 3.375rem; }
.w-cpu, .w-swap { width: 3.5rem; }
.w-memory, .w-disk { width: 4.5rem; }
.w-jobs { width: 4rem; }
.w-time { width: 5.125rem; }
.w-updated { width: 4.875rem; }
@media (min-width: 94rem) {
  .w-address { width: 12rem; }
  .w-cpus, .w-busy, .w-cpu, .w-swap { width: 4.25rem; }
  .w-memory, .w-disk, .w-jobs { width: 5.25rem; }
  .w-time, .w-updated { width: 6rem; }
}

#nodes thead { position: sticky; top: 0; z-index: 2; }
#nodes thead th { padding: 0; background: var(--raised); border-bottom: 1px solid var(--line); text-align: left; vertical-align: bottom; font-weight: 500; }
#nodes thead .span { padding: .25rem .5rem 0; border-bottom: 0; text-align: center; color: var(--muted); font-weight: 400; font-size: .75rem; }
#nodes thead .span span { display: block; margin-left: .75rem; border-bottom: 1px solid var(--line); line-height: 1.3; }
#nodes thead button {
  width: 100%;
  min-height: 1.75rem;
  padding: .25rem .375rem;
  background: none;
  border: 0;
  border-radius: 0;
  color: var(--muted);
  font-size: .75rem;
  font-weight: 500;
  text-align: inherit;
  white-space: normal;
  line-height: 1.2;
}
#nodes thead button:hover { color: var(--text); background: var(--tint); }
#nodes thead button:focus-visible { outline-offset: -2px; }
#nodes thead [aria-sort] button { color: var(--text); }
#nodes thead [aria-sort] button::after { content: "\2191"; color: var(--accent-text); }
#nodes thead [aria-sort="descending"] button::after { content: "\2193"; }
#nodes thead .num { text-align: right; }

#rows > tr { position: relative; height: calc(var(--row) * 1rem); }
#rows > tr.has-why { height: calc((var(--row) + var(--why)) * 1rem); }
#rows td, #rows th {
  padding: .375rem;
  border-bottom: 1px solid var(--line);
  overflow: hidden;
  text-overflow: ellipsis;
  white-space: nowrap;
  text-align: left;
  vertical-align: top;
  font-weight: 400;
  line-height: 1.3;
}
#rows .num { text-align: right; }
#rows > tr:hover { background: var(--raised); }
#rows > tr.selected { background: var(--tint); }
#rows > tr:focus-within > .c-select { box-shadow: inset 3px 0 0 var(--accent); }
.c-address a { font-weight: 500; text-decoration: none; }
.c-address a:hover { text-decoration: underline; }
.c-address a:focus-visible { outline-offset: -1px; }
#rows .c-select, #nodes thead .c-select { padding: 0; }
.hit { display: flex; align-items: center; justify-content: center; min-height: 2rem; cursor: pointer; }
.c-updated { color: var(--muted); }

/* The reason has the row's second line for itself. */
.why { position: absolute; left: 2.625rem; right: .375rem; bottom: .3125rem; overflow: hidden; text-overflow: ellipsis; color: var(--muted); line-height: 1.3; }

.unreachable .c-fact, .unreachable .c-name, .locked .c-fact { color: var(--muted); }
.unreachable .c-updated { color: var(--unreachable); }

/* A hair of a meter under a percentage. */
.meter { position: relative; }
td.meter[style*="--share"] {
  background: linear-gradient(var(--fill), var(--fill)) no-repeat right calc(.375rem + (100 - var(--share)) * .0275rem) top 1.5625rem / calc(var(--share) * .0275rem) 2px,
    linear-gradient(var(--line), var(--line)) no-repeat right .375rem top 1.5625rem / 2.75rem 2px;
  --fill: var(--accent);
}
.unreachable td.meter[style*="--share"] { --fill: var(--line-strong); }

#nodes .space td { padding: 0; border: 0; }
.no-match { padding: 2rem 1rem; text-align: center; color: var(--muted); }
.no-match button { margin-left: .5rem; }

/* ======== History ======== */

.past > summary { width: max-content; padding: 0 .25rem; color: var(--muted); font-size: .8125rem; font-weight: 500; cursor: pointer; }
.past > summary:hover { color: var(--text); }
.past > .charts { margin-top: .375rem; padding: .625rem 1rem .375rem; background: var(--surface); border: 1px solid var(--line); border-radius: var(--radius); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(14.5rem, 100%), 1fr)); gap: .75rem 1.5rem; }
#node-charts { grid-template-columns: repeat(auto-fit, minmax(min(12.5rem, 100%), 1fr)); }
.charts + .hint { margin-top: .375rem; }
.chart { min-width: 0; margin: 0; font-size: .8125rem; }
.chart figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; column-gap: .75rem; }
.chart figcaption > b { font-weight: 600; }
.chart .when { color: var(--muted); }
.chart .series { display: flex; flex-wrap: wrap; flex-basis: 100%; gap: 0 .75rem; color: var(--muted); font-size: .75rem; line-height: 1.5; white-space: nowrap; }
.chart .series b { color: var(--text); font-weight: 600; }
.chart .series svg { width: 1.125rem; height: .5rem; margin-right: .25rem; vertical-align: middle; }
.plot { display: block; width: 100%; height: 6.5rem; margin-top: .1875rem; overflow: visible; font-size: .6875rem; touch-action: pan-y; cursor: crosshair; }
.plot:focus-visible { outline-offset: 0; border-radius: .25rem; }
.plot text { fill: var(--muted); }
.plot .grid { stroke: var(--line); shape-rendering: crispEdges; }
.plot .axis { stroke: var(--line-strong); shape-rendering: crispEdges; }
.plot .unknown { fill: var(--line); opacity: .45; }
.plot .cursor { stroke: var(--text); stroke-dasharray: 2 2; shape-rendering: crispEdges; }
.line-1, .line-2, .line-ready, .line-lost { fill: none; stroke: var(--accent); stroke-width: 1.75; stroke-linecap: round; stroke-linejoin: round; }
.line-2 { stroke: var(--line-strong); stroke-width: 1.5; stroke-dasharray: 1 3.5; }
.line-ready { stroke: var(--ready); }
.line-lost { stroke: var(--unreachable); stroke-dasharray: 5 3.5; }
.plot .area { fill: var(--accent); opacity: .1; }
.plot circle { stroke: var(--surface); stroke-width: 1.5; stroke-dasharray: none; }
.plot circle.line-1 { fill: var(--accent); }
.plot circle.line-2 { fill: var(--line-strong); }
.plot circle.line-ready { fill: var(--ready); }
.plot circle.line-lost { fill: var(--unreachable); }

/* ======== Empty ======== */

.empty { display: grid; gap: .625rem; padding: 1.75rem; background: var(--surface); border: 1px solid var(--line); border-radius: var(--radius); }
.empty > * { max-width: 46rem; }
.view-cluster .empty { min-height: 0; overflow: auto; }
.empty h2 { font-size: 1.125rem; }
.empty h3 { margin-top: .75rem; font-size: .875rem; }
.empty pre { padding: .75rem 1rem; background: var(--ground); border: 1px solid var(--line); border-radius: .375rem; overflow-x: auto; }
.empty ul { padding-left: 1.125rem; }
.empty li + li { margin-top: .25rem; }

/* ======== Node view ======== */

.back a { display: inline-flex; align-items: center; min-height: 1.75rem; text-decoration: none; }
.back a::before { content: "\2190"; margin-right: .375rem; }
.back a:hover { text-decoration: underline; }
.node-head { display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem .875rem; }
.node-name { color: var(--muted); font-size: 1rem; overflow-wrap: anywhere; }
.node-head .state { align-self: center; font-weight: 600; }
.notice { padding: .625rem .875rem; border: 1px solid var(--line); border-left: 3px solid var(--stopped); border-radius: var(--radius); background: var(--surface); }
.notice strong:empty { display: none; }
.notice[data-state="locked"] { border-left-color: var(--locked); background: var(--locked-tint); }
.notice.drifted { border-left-color: var(--locked); background: var(--locked-tint); }
.notice.draining { border-left-color: var(--accent); }
.notice h2 { margin-bottom: .25rem; }
.notice ul { margin-bottom: .625rem; padding-left: 1.125rem; }
.notice .line { align-items: center; }
.notice .line > .grow { flex-basis: 14rem; }
.notice[data-state="unreachable"] { border-left-color: var(--unreachable); background: var(--unreachable-tint); }

.facts { columns: 2 22rem; column-gap: var(--gap); }
.facts > .panel { break-inside: avoid; margin-bottom: var(--gap); }
.facts > .panel:last-child { margin-bottom: 0; }
.facts + .panel { margin-top: calc(var(--gap) - .75rem); }
.facts dl > div { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; padding: .3125rem 0; border-top: 1px solid var(--line); }
.facts dl > div:first-child { border-top: 0; }
.facts dt { color: var(--muted); }
.facts dd { margin-left: auto; text-align: right; font-weight: 500; white-space: pre-line; overflow-wrap: anywhere; min-width: 0; }
.facts.bare .detail { display: none; }
.facts dd.meter::after { content: ""; display: block; width: 6rem; height: 3px; margin: .1875rem 0 .125rem auto; border-radius: 2px;
  background: linear-gradient(var(--accent), var(--accent)) no-repeat left / calc(var(--share) * .06rem) 100%, var(--line); }
.facts dd.meter:not([style*="--share"])::after { display: none; }
.facts .hint { margin-top: .5rem; }
.unreachable .facts dd { color: var(--muted); }
.unreachable .facts dd.meter { --accent: var(--line-strong); }
.unreachable .facts [data-field="update_time"] { color: var(--unreachable); }

.chooser { max-width: 46rem; width: 100%; }
.chooser .filter { flex: none; width: 100%; }
.node-name, .choices .name, .groups span { unicode-bidi: isolate; }
.choices { padding: 0; list-style: none; background: var(--surface); border: 1px solid var(--line); border-radius: var(--radius); }
.choices:empty { display: none; }
.choices li { display: flex; align-items: center; gap: 0 1rem; padding: .125rem .875rem; border-top: 1px solid var(--line); }
.choices li:first-child { border-top: 0; }
.choices a { display: inline-flex; flex: none; align-items: center; min-height: 2.125rem; font-weight: 500; text-decoration: none; overflow-wrap: anywhere; }
.choices a:hover { text-decoration: underline; }
.choices .name { color: var(--muted); min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.choices .state { margin-left: auto; }

/* ======== Outcome ======== */

.outcome {
  position: sticky;
  bottom: var(--gap);
  z-index: 3;
  padding: .5rem .5rem .5rem 1rem;
  background: var(--surface);
  border: 1px solid var(--line-strong);
  border-left: 3px solid var(--ready);
  border-radius: var(--radius);
  box-shadow: var(--shadow);
}
.outcome[data-state="failed"] { border-left-color: var(--unreachable); }
.outcome[data-state="working"] { border-left-color: var(--accent); }
.outcome-head { display: flex; align-items: center; gap: 1rem; justify-content: space-between; }
#outcome-summary { font-weight: 600; overflow-wrap: anywhere; }
.outcome-tools { display: flex; flex-wrap: wrap; gap: .375rem; justify-content: flex-end; }
#outcome-progress { display: block; width: 100%; height: .375rem; margin: .375rem 0; accent-color: var(--accent); }
.groups { max-height: 14rem; overflow: auto; margin-top: .25rem; font-size: .8125rem; }
.groups summary { padding: .125rem 0; cursor: pointer; font-weight: 500; }
.groups ul { padding: 0 0 .25rem; list-style: none; }
.groups li { position: relative; padding: .125rem .5rem .125rem 1.25rem; overflow-wrap: anywhere; }
.groups li::before { position: absolute; left: 0; content: "\2715"; color: var(--unreachable); }
.groups li.done::before { content: "\2713"; color: var(--ready); }
.groups li.plan::before { content: "\2192"; color: var(--muted); }
.groups b { font-weight: 500; }
.groups button { margin: .375rem 0 .25rem 1.25rem; }
#ask .groups { margin-top: .75rem; }
.outcome[data-state="working"] .outcome-head::before { content: ""; flex: none; width: .75rem; height: .75rem; border: 2px solid var(--line); border-top-color: var(--accent); border-radius: 50%; animation: turn .9s linear infinite; margin-right: -.375rem; }
.outcome[data-state="working"] .outcome-head { justify-content: flex-start; }
.outcome[data-state="working"] .outcome-tools { margin-left: auto; }
@keyframes turn { to { transform: rotate(1turn); } }

/* ======== Diagnosis ======== */

#diagnosis { margin-top: .75rem; padding-top: .625rem; border-top: 1px solid var(--line); }
.diagnosis { font-size: .8125rem; }
.diagnosis-head { display: flex; align-items: center; justify-content: space-between; gap: .5rem; font-weight: 600; overflow-wrap: anywhere; }
.diagnosis ul { padding: 0; list-style: none; }
.diagnosis li { display: flex; gap: .5rem; padding: .1875rem 0; color: var(--muted); }
.diagnosis li > span { min-width: 0; overflow-wrap: anywhere; }
.diagnosis li svg { flex: none; width: .875rem; height: .875rem; margin-top: .125rem; }
.diagnosis li b { font-weight: 600; }
.diagnosis li[data-state="ok"] svg { color: var(--ready); }
.diagnosis li[data-state="warning"], .diagnosis li[data-state="failed"] { color: var(--text); }
.diagnosis li[data-state="warning"] svg, .diagnosis li[data-state="warning"] b { color: var(--locked); }
.diagnosis li[data-state="failed"] svg, .diagnosis li[data-state="failed"] b { color: var(--unreachable); }
.cure:empty { display: none; }
.cure { margin-top: .375rem; padding: .5rem .625rem; background: var(--ground); border-left: 3px solid var(--accent); border-radius: .25rem; overflow-wrap: anywhere; }

/* ======== Question ======== */

dialog { width: min(28rem, calc(100vw - 2rem)); padding: 1.25rem; background: var(--surface); color: var(--text); border: 1px solid var(--line); border-radius: .625rem; box-shadow: var(--shadow); }
dialog::backdrop { background: rgba(14, 18, 30, .45); }
dialog h2 { margin-bottom: .5rem; font-size: 1.0625rem; }
dialog .line { margin-top: 1.125rem; justify-content: flex-end; }

/* ======== Events, and help ======== */

.drawer { width: min(34rem, 100%); max-width: none; height: 100vh; height: 100dvh; max-height: none; margin: 0 0 0 auto; padding: 0 1.25rem 1.25rem; border-width: 0 0 0 1px; border-radius: 0; }
.drawer-head { position: sticky; top: 0; z-index: 1; display: flex; align-items: center; justify-content: space-between; margin: 0 -1.25rem .25rem; padding: .625rem .75rem .625rem 1.25rem; background: var(--surface); border-bottom: 1px solid var(--line); }
dialog .drawer-head h2 { margin: 0; }
dialog h2:focus { outline: none; }
.events { margin: 0; padding: 0; list-style: none; }
.events > li { display: grid; grid-template-columns: 4.5rem minmax(0, 1fr) auto; gap: 0 .75rem; align-items: start; padding: .5rem 0; border-top: 1px solid var(--line); font-size: .8125rem; }
.events > li:first-child { border-top: 0; }
.events time { color: var(--muted); }
.events .what { font-weight: 500; overflow-wrap: anywhere; }
.events .who { color: var(--muted); overflow-wrap: anywhere; }
.events .part { grid-column: 2; min-width: 0; }
.events .undo { grid-column: 3; grid-row: 1 / span 2; min-height: 1.75rem; margin-left: auto; }
.events details { grid-column: 2 / -1; }
.events .groups { max-height: none; margin: 0; }
.events .lost .what { color: var(--unreachable); }
#events-more { margin-top: .75rem; }

.keys > div { display: flex; gap: .25rem 1rem; align-items: baseline; padding: .25rem 0; border-top: 1px solid var(--line); }
.keys > div:first-child { border-top: 0; }
.keys dt { flex: 0 0 4rem; }
kbd { display: inline-block; min-width: 1.5rem; padding: .0625rem .375rem; border: 1px solid var(--line-strong); border-radius: .25rem; background: var(--raised); font: inherit; font-size: .75rem; text-align: center; }
#help .check { margin-top: .75rem; }

/* ======== Wide: controls beside the table, the table fills the window ======== */

@media (min-width: 84rem) {
  :root { --gap: 1.25rem; }
  .layout { grid-template-columns: minmax(0, 1fr) 18rem; grid-template-rows: auto minmax(0, 1fr); }
  .totals { grid-column: 1 / -1; }
  .view-node .layout { grid-template-rows: minmax(0, 1fr); }
  .work { grid-column: 1; }
  .controls { grid-column: 2; columns: auto; margin-bottom: 0; }
  .controls > .panel { margin-bottom: .75rem; }
  .outcome { grid-column: 1; }
}

@media (min-width: 84rem) and (min-height: 40rem) {
  .view-cluster { height: 100vh; }
  .view-cluster .layout { min-height: 0; grid-template-rows: auto minmax(0, 1fr) auto; padding-bottom: 0; }
  .view-cluster .work { min-height: 0; }
  .view-cluster .viewport { max-height: none; min-height: 0; }
  .view-cluster .viewport.full { flex: 1 1 0; height: auto; }
  .view-cluster .controls { grid-row: 2 / span 2; min-height: 0; overflow: auto; scrollbar-gutter: stable; padding-bottom: .25rem; }
  .view-cluster .outcome { grid-row: 3; bottom: 0; }
}

/* ======== Narrow: each node is a card ======== */

@media (max-width: 62rem) {
  #nodes { --row: 6.25; --bare: 3.5; --why: 1.375; display: block; min-width: 0; }
  #nodes thead { position: static; display: block; }
  #nodes thead tr { display: block; }
  #nodes thead tr:last-child, #nodes thead .over th:not(.c-select) { display: none; }
  #nodes thead .c-select { display: block; }
  #nodes thead .hit { justify-content: flex-start; gap: .75rem; padding: 0 .875rem; color: var(--muted); }
  #nodes thead .unseen { position: static; width: auto; height: auto; clip-path: none; order: 2; }
  #nodes tbody { display: block; }
  #nodes .space tr, #nodes .space td { display: block; }

  #rows > tr, #rows > tr.has-why {
    display: grid;
    grid-template-columns: 2.5rem repeat(8, minmax(0, 1fr));
    grid-template-areas: "select address address address address address state state state" "select name name name name name updated updated updated";
    align-content: start;
    gap: .125rem .5rem;
    height: auto;
    padding: .5rem .75rem .5rem .125rem;
    border-bottom: 1px solid var(--line);
  }
  #nodes.some #rows > tr { height: calc(var(--row) * 1rem); overflow: hidden; }
  #nodes.some #rows > tr.bare { height: calc(var(--bare) * 1rem); }
  #nodes.some #rows > tr.has-why { height: calc((var(--row) + var(--why)) * 1rem); }
  #nodes.some #rows > tr.bare.has-why { height: calc((var(--bare) + var(--why)) * 1rem); }
  #rows td, #rows th { padding: 0; border: 0; }
  #rows .c-select { grid-area: select; }
  .c-address { grid-area: address; font-size: .875rem; }
  .c-name { grid-area: name; color: var(--muted); }
  .c-updated { grid-area: updated; }
  #rows .c-state { display: contents; }
  #rows .c-state > .state { grid-area: state; justify-self: end; }
  .why { position: static; grid-column: 2 / -1; grid-row: 3; white-space: normal; padding-top: .125rem; }
  #nodes.some .why { display: -webkit-box; -webkit-line-clamp: 1; -webkit-box-orient: vertical; }
  #rows .c-fact { grid-row: 4; text-align: left; padding-top: .25rem; }
  #rows [data-col="cpus"] { grid-column: 2; }
  #rows [data-col="busy"] { grid-column: 3; }
  #rows [data-col="cpu"] { grid-column: 4; }
  #rows [data-col="memory"] { grid-column: 5; }
  #rows [data-col="swap"] { grid-column: 6; }
  #rows [data-col="disk"] { grid-column: 7; }
  #rows [data-col="jobs"] { grid-column: 8; }
  #rows [data-col="time"] { grid-column: 9; }
  #rows .c-fact::before { content: attr(data-label); display: block; color: var(--muted); font-size: .6875rem; line-height: 1.3; overflow: hidden; text-overflow: ellipsis; }
  .bare .c-fact { display: none; }
  #rows td.meter[style] { background: none; }
  .hit { min-height: 2.5rem; }
}

@media (max-width: 40rem) {
  #nodes { --row: 8.5; --why: 2.625; }
  #rows > tr, #rows > tr.has-why {
    grid-template-columns: 2.25rem minmax(0, 1fr) minmax(0, 1fr) minmax(0, 1fr) minmax(0, 1.1fr);
    column-gap: .3125rem;
    grid-template-areas: "select address address address state" "select name name updated updated";
  }
  #rows [data-col="swap"] { grid-area: 5 / 2; }
  #rows [data-col="jobs"] { grid-area: 5 / 3; }
  #rows [data-col="disk"] { grid-area: 5 / 4; }
  #rows [data-col="time"] { grid-area: 5 / 5; }
  #nodes.some .why { -webkit-line-clamp: 2; }
}

@media (max-width: 40rem) {
  :root { --gap: .75rem; }
  .top { column-gap: 1rem; }
  .freshness { order: 1; width: 100%; margin: 0; padding-bottom: .5rem; font-size: .75rem; }
  .top nav { margin-left: -.625rem; width: 100%; order: 2; }
  .brand { padding: .625rem 0 0; }
  .by-state { width: 100%; }
  .by-state button { padding: .25rem .5rem; }
  .count { width: 100%; margin: 0; justify-content: space-between; }
  .top-tools { margin: 0 -.5rem 0 auto; }
  .sort { flex: 1 1 8rem; flex-wrap: wrap; gap: .125rem .25rem; }
  .sort label { flex-basis: 100%; font-size: .75rem; }
  .sort select { flex: 1; min-width: 0; max-width: none; }
  .events > li { grid-template-columns: 3.75rem minmax(0, 1fr) auto; column-gap: .5rem; }
  .filter { flex-basis: 100%; max-width: none; }
  .empty { padding: 1rem; }
  .choices li { flex-wrap: wrap; padding-bottom: .25rem; }
  .choices a { flex: 0 1 auto; min-width: 0; }
  .choices .name { order: 3; flex: 0 0 100%; margin-top: -.375rem; }
  .choices .name:empty { display: none; }
  .groups { max-height: 9rem; }
  .outcome-head { flex-wrap: wrap; gap: .25rem .75rem; }
}

@media (pointer: coarse) {
  button, input[type="text"], input[type="search"], input[type="number"], input[type="password"], select { min-height: 2.75rem; }
  .check, .hit { min-height: 2.75rem; }
  .hit { min-height: 2rem; }
  input[type="checkbox"] { width: 1.25rem; height: 1.25rem; }
  #sort-direction { width: 2.75rem; }
}

@media (pointer: coarse) {
  .past > summary { padding: .75rem .25rem; }
}

@media (prefers-reduced-motion: reduce) {
  .outcome[data-state="working"] .outcome-head::before { animation: none; }
}

@media (forced-colors: active) {
  #nodes thead [aria-sort] button::after, .state { forced-color-adjust: auto; }
  .bar::after { background: Highlight; }
  .by-state button[aria-pressed="true"] { outline: 2px solid Highlight; }
  .chart { --accent: CanvasText; --ready: CanvasText; --unreachable: CanvasText; --line-strong: CanvasText; --line: GrayText; --muted: CanvasText; }
}

/* ======== Paper ======== */

@media print {
  :root { --ground: #fff; --surface: #fff; --raised: #fff; --line: #bbb; --text: #000; --muted: #444; }
  .chart { --accent: #3d4fb0; --ready: #17743f; --unreachable: #b3261e; --line-strong: #666; break-inside: avoid; }
  .past:not([open]) { display: none; }
  .controls, .tools, .top nav, .top-tools, .notice button, .c-select, .w-select, .skip, .outcome, .back { display: none !important; }
  body, .view-cluster { display: block; height: auto; }
  .layout { display: block; padding: 0; }
  .viewport, .viewport.full { contain: none; height: auto; max-height: none; overflow: visible; border: 0; }
  .totals { margin-bottom: 1rem; }
  #nodes thead { position: static; }
  #rows > tr, .facts .panel { break-inside: avoid; }
}
'''

PAGE_JS = r'''/* dispyadmin's page.

   The server sends what changed; the page keeps every node in a Map, sorts and filters light records of them, and draws
   only the rows in view.  update() is complete and idempotent: whatever happened, call it, and the page shows the truth.
   Nodes are strangers: what they say reaches the document as text (textContent), never as markup. */
(function () {
  'use strict';

  // ======== Facts and limits ========

  const DRAW_ALL = 60;            // up to so many rows all are drawn; above, only those in view: 200 would hold up the page
  const OVERSCAN = 10;            // rows drawn beyond each edge, so that a quick scroll shows no gap
  const PERIOD = [2, 10];         // seconds between refreshes: half the poll interval, within these
  const PERIOD_HIDDEN = 30;       // nobody looks
  const PERIOD_LOST = 5;          // the server does not answer
  const PATIENCE = 30;            // seconds until a refresh counts as unanswered
  const SLICE = 300000;           // characters of a reply read at one go, some 500 nodes; input is handled in between
  const LIST_STEP = 50;           // outcome lines drawn at once
  const READ_OUT = 5;             // up to so many lines a screen reader reads by itself; above, only the summary
  const CHOICES = 100;            // links offered by the node chooser
  const PROGRESS = .5;            // seconds between looks at how far an operation is
  const END_PATIENCE = 15;        // seconds that a drained dispynode may take to end
  const ADDRESS_PAUSE = .3;       // seconds until what the table shows is in the address of the page
  const CSV_STEP = 500;           // nodes written as CSV at one go
  const STATES = ['ready', 'stopped', 'locked', 'unreachable'];
  const DASH = '\u2013';
  const MINUS = '\u2212';

  // ======== Page state ========

  const store = {
    nodes: new Map(),             // id -> record; see Records
    sequence: null,               // of the last reply; null: ask for everything
    totals: null,
    groups: {},                   // name -> its totals
    draining: new Set(),          // ids of the nodes that are being drained
    pollInterval: null,
    skew: 0,                      // server's clock minus this one's, seconds
    answered: null,               // Date of the last good reply
    lost: false,
    denied: false,
    about: null,
  };
  const view = {
    name: 'cluster',              // or 'node'
    host: '',                     // what the address asks for, in the node view
    words: [],                    // filter, lower case
    state: '',                    // quick filter from the totals: one of STATES, or 'drifted'
    group: '',                    // name; '' means all nodes
    sort: 'address',
    down: false,
    order: [],                    // every record, sorted
    shown: [],                    // those that the filter lets through
    offsets: new Float64Array(1), // shown[i] starts at offsets[i] pixels
    selected: new Set(),          // ids; survives refresh, sort and filter
    anchor: null,                 // where a shift-click range starts
    cursor: null,                 // id of the row that the keys moved to last
    scroll: 0,                    // of the table, while the node view is shown
  };
  const rows = new Map();         // id -> drawn row
  const els = {};                 // id -> element, for every element with an id

  // ======== Values as text ========

  const grouped = new Intl.NumberFormat('en-GB');

  function isNumber(value) {
    return typeof value === 'number' && isFinite(value);
  }

  function asCount(value) {
    return isNumber(value) ? grouped.format(value).replace('-', MINUS) : DASH;
  }

  function asPercent(value) {
    return isNumber(value) ? Math.round(value) + ' %' : DASH;
  }

  function asSize(bytes) {
    if (!isNumber(bytes)) return DASH;
    const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
    let unit = 0;
    while (bytes >= 1024 && unit < units.length - 1) {
      bytes /= 1024;
      unit += 1;
    }
    return bytes.toFixed(bytes < 100 && unit > 2 ? 1 : 0) + ' ' + units[unit];
  }

  // The two largest units: "3 d 4 h", "12 m 5 s".
  function asDuration(seconds) {
    if (!isNumber(seconds)) return DASH;
    if (seconds >= .05 && seconds < 10) return String(Math.round(seconds * 10) / 10) + ' s';
    const parts = [['d', 86400], ['h', 3600], ['m', 60], ['s', 1]];
    let rest = Math.round(seconds);
    const at = parts.findIndex(function (part) { return rest >= part[1]; });
    if (at < 0) return '0 s';
    return parts.slice(at, at + 2).map(function (part) {
      const count = Math.floor(rest / part[1]);
      rest -= count * part[1];
      return count ? asCount(count) + ' ' + part[0] : '';
    }).filter(Boolean).join(' ');
  }

  function now() {
    return Date.now() / 1000 + store.skew;
  }

  // One unit will do for an age, and it stays narrow.
  function asTimeSince(time) {
    const age = Math.max(0, Math.round(now() - time));
    if (age < 120) return age + ' s';
    if (age < 7200) return Math.floor(age / 60) + ' m';
    return age < 172800 ? Math.floor(age / 3600) + ' h' : Math.floor(age / 86400) + ' d';
  }

  function asAge(time) {
    return isNumber(time) ? asTimeSince(time) + ' ago' : DASH;
  }

  function twoDigits(number) {
    return (number < 10 ? '0' : '') + number;
  }

  function asClock(date) {
    return twoDigits(date.getHours()) + ':' + twoDigits(date.getMinutes());
  }

  // Browsers know "CET" or "EST" only in a language of that region, so ask two; else it is "GMT+9".
  function zoneName(date) {
    const names = ['en-GB', 'en-US'].map(function (language) {
      const parts = new Intl.DateTimeFormat(language, {timeZoneName: 'short'}).formatToParts(date);
      const zone = parts.find(function (part) { return part.type === 'timeZoneName'; });
      return zone ? zone.value : '';
    });
    return names.find(function (name) { return !/^GMT.|^$/.test(name); }) || names[0] || 'local time';
  }

  // "18:00 CET"; with the date when that is not today.
  function asMoment(time) {
    if (!isNumber(time)) return DASH;
    const date = new Date(time * 1000);
    const clock = asClock(date) + ' ' + zoneName(date);
    if (date.toDateString() === new Date().toDateString()) return clock;
    const day = {weekday: 'short', day: 'numeric', month: 'short'};
    if (date.getFullYear() !== new Date().getFullYear()) day.year = 'numeric';
    return new Intl.DateTimeFormat('en-GB', day).format(date) + ', ' + clock;
  }

  function asMomentAndAge(time) {
    return isNumber(time) ? asMoment(time) + ' (' + asAge(time) + ')' : DASH;
  }

  function plural(count, one, many) {
    return asCount(count) + ' ' + (count === 1 ? one : many || one + 's');
  }

  function orDash(text) {
    return text === null || text === undefined || text === '' ? DASH : String(text);
  }

  // ======== Sort keys ========

  // Digits padded, so that plain comparison (much faster than a collator) puts node9 before node10.
  function naturalKey(text) {
    return String(text).toLowerCase().replace(/\d+/g, function (digits) { return digits.padStart(12, '0'); });
  }

  function v6Key(address) {
    const zoned = address.split('%');
    const halves = zoned[0].split('::').map(function (half) { return half ? half.split(':') : []; });
    const tail = halves.length > 1 ? halves[1] : [];
    const zeros = new Array(Math.max(0, 8 - halves[0].length - tail.length)).fill('0');
    const groups = halves[0].concat(halves.length > 1 ? zeros : [], tail);
    return groups.map(function (group) { return group.padStart(4, '0'); }).join('') + '%' + (zoned[1] || '');
  }

  // IPv4 by number, then IPv6, each then by port; names last.
  function addressKey(node) {
    const address = String(node.ip_addr || node.id).toLowerCase();
    const port = String(node.port || 0).padStart(5, '0');
    if (/^\d+(\.\d+){3}$/.test(address)) return '4' + naturalKey(address) + ' ' + port;
    return (address.indexOf(':') >= 0 ? '6' + v6Key(address) : '7' + naturalKey(address)) + ' ' + port;
  }

  function available(node, key) {
    return node.avail_info ? node.avail_info[key] : null;
  }

  // ======== Columns ========
  // value: what is sorted by (null goes last, either way).  text: what the cell shows.  down: largest first on the first click.

  const COLUMNS = [
    {key: 'address', title: 'Address', value: function (rec) { return rec.addressKey; }},
    {key: 'name', title: 'Name', value: function (rec) { return rec.node.name ? nameKey(rec) : null; },
      text: function (node) { return orDash(node.name); }},
    {key: 'state', title: 'State', value: function (rec) { return STATES.indexOf(rec.node.state); }},
    {key: 'cpus', title: 'CPUs', down: true, value: function (rec) { return rec.node.cpus; },
      text: function (node) { return asCount(node.cpus); }},
    {key: 'busy', title: 'Busy CPUs', down: true, value: function (rec) { return rec.node.busy; },
      text: function (node) { return asCount(node.busy); }},
    {key: 'cpu', title: 'Available CPU', down: true, value: function (rec) { return available(rec.node, 'cpu'); },
      text: function (node) { return asPercent(available(node, 'cpu')); }},
    {key: 'memory', title: 'Available memory', down: true, value: function (rec) { return available(rec.node, 'memory'); },
      text: function (node) { return asSize(available(node, 'memory')); }},
    {key: 'swap', title: 'Available swap', down: true, value: function (rec) { return available(rec.node, 'swap'); },
      text: function (node) { return asPercent(available(node, 'swap')); }},
    {key: 'disk', title: 'Available disk', down: true, value: function (rec) { return available(rec.node, 'disk'); },
      text: function (node) { return asSize(available(node, 'disk')); }},
    {key: 'jobs', title: 'Jobs done', down: true, value: function (rec) { return rec.node.jobs_done; },
      text: function (node) { return asCount(node.jobs_done); }},
    {key: 'time', title: 'CPU time', down: true, value: function (rec) { return rec.node.cpu_time; },
      text: function (node) { return asDuration(node.cpu_time); }},
    {key: 'updated', title: 'Last update', down: true, value: function (rec) { return rec.node.update_time; }},
    {key: 'found', title: 'Order found', value: function (rec) { return rec.node.first_seen; }},
  ];
  const COLUMN = new Map(COLUMNS.map(function (column) { return [column.key, column]; }));
  const METERS = ['cpu', 'swap'];

  function nameKey(rec) {
    if (rec.nameOf !== rec.node.name) {
      rec.nameOf = rec.node.name;
      rec.nameKey = naturalKey(rec.node.name);
    }
    return rec.nameKey;
  }

  // ======== DOM helpers ========

  // A text that stays in its place is cheaper for the browser than a new one.
  function setText(element, text) {
    const old = element.firstChild;
    if (old && !old.nextSibling && old.nodeType === Node.TEXT_NODE && text) {
      if (old.data !== text) old.data = text;
    } else if (element.textContent !== text) {
      element.textContent = text;
    }
  }

  function setAttr(element, name, value) {
    if (value === null) element.removeAttribute(name);
    else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  }

  function make(tag, text, className) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  }

  function hasOwn(object, key) {
    return Object.prototype.hasOwnProperty.call(object, key);
  }

  function setHidden(element, hidden) {
    if (element.hidden !== hidden) element.hidden = hidden;
  }

  // For a .state element: its shape, its word and, through data-state, its colour.
  function setState(element, state) {
    if (element.dataset.state === state) return;
    element.dataset.state = state;
    element.querySelector('use').setAttribute('href', '#shape-' + state);
    setText(element.querySelector('span'), state);
  }

  function setShare(element, percent) {
    const share = isNumber(percent) ? String(Math.max(0, Math.min(100, Math.round(percent)))) : '';
    if (element.style.getPropertyValue('--share') !== share) element.style.setProperty('--share', share);
  }

  function nodeUrl(id) {
    return 'admin_node.html?host=' + encodeURIComponent(id);
  }

  // Whatever else waits comes first; where nobody looks nothing does, and browsers make every pause a second there.
  function pause() {
    return new Promise(function (resolve) { if (document.hidden) resolve(); else setTimeout(resolve); });
  }

  // Puts children in the given order without ever moving the pivot: a moved element loses the focus that is in it.
  function arrange(parent, children, pivot) {
    const at = Math.max(0, children.indexOf(pivot));
    let after = children[at] || null;
    if (pivot === null && after && parent.firstChild !== after) parent.insertBefore(after, parent.firstChild);
    for (let i = at - 1; i >= 0; i -= 1) {
      if (children[i].nextSibling !== after) parent.insertBefore(children[i], after);
      after = children[i];
    }
    for (let i = at + 1; i < children.length; i += 1) {
      const next = children[i - 1].nextSibling;
      if (next !== children[i]) parent.insertBefore(children[i], next);
    }
  }

  // ======== Server ========

  function asJson(response) {
    return response.json();
  }

  // Piece by piece, as it comes: text() would decode all of it in one go.
  async function asText(response) {
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let text = '';
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      text += decoder.decode(piece.value, {stream: true});
    }
    return text + decoder.decode();
  }

  // Resolves to the reply, JSON unless read otherwise; rejects with an Error that has .status (0: no answer) and a
  // sentence.
  async function request(method, path, body, read) {
    const options = {method: method, credentials: 'same-origin', cache: 'no-store', headers: {Accept: 'application/json'}};
    if (method !== 'GET') options.headers['Content-Type'] = 'application/json';
    if (method === 'POST') options.body = JSON.stringify(body || {});
    const response = await fetch(path, options).catch(function () {
      throw failure(0, 'No answer from dispyadmin.');
    });
    const reply = await (response.ok && read || asJson)(response).catch(function () { return null; });
    if (response.ok && reply) return reply;
    throw failure(response.status, reply && reply.error ? reply.error : 'dispyadmin answered with status ' + response.status + '.');
  }

  function failure(status, sentence) {
    const error = new Error(sentence);
    error.status = status;
    return error;
  }

  // A connection that went silent (a laptop woken up, a dead tunnel) must not hold up the page for ever.
  function withPatience(promise) {
    return new Promise(function (resolve, reject) {
      const timer = setTimeout(function () { reject(failure(0, 'No answer from dispyadmin.')); }, PATIENCE * 1000);
      promise.then(resolve, reject).then(function () { clearTimeout(timer); });
    });
  }

  // ======== Records ========
  // A record is what the page keeps of a node: {id, node, addressKey, text, key, at}.
  //   text  what the filter searches, made when first needed; key  the current sort key; at  place in view.shown, or -1.

  function takeNode(node) {
    let rec = store.nodes.get(node.id);
    if (!rec) {
      rec = {id: node.id, node: node, addressKey: addressKey(node), text: null, key: null, at: -1};
      store.nodes.set(node.id, rec);
      view.order.push(rec);
    }
    if (!sameToSearch(rec.node, node)) rec.text = null;
    if (node.drain) store.draining.add(node.id);
    else if (rec.node.drain) store.draining.delete(node.id);
    rec.node = node;
  }

  function sameToSearch(a, b) {
    return a.name === b.name && a.state === b.state && a.reason === b.reason && a.version === b.version &&
      !a.drain === !b.drain && (a.drift === b.drift || String(a.drift) === String(b.drift)) && String(a.addresses) === String(b.addresses);
  }

  function dropNode(id) {
    store.nodes.delete(id);
    store.draining.delete(id);
    view.selected.delete(id);
  }

  function dropAllBut(kept) {
    Array.from(store.nodes.keys()).forEach(function (id) { if (!kept.has(id)) dropNode(id); });
  }

  function stillKnown(rec) {
    return store.nodes.get(rec.id) === rec;
  }

  // Ten thousand nodes are 5 MB of JSON, which the browser would read in one go, deaf meanwhile.  Their array comes last
  // in the reply; it is read in slices that end between two nodes: no text in JSON has such a place in it, as a quote
  // ends the text, and what follows does not go on like that.  Resolves to the reply without the nodes.
  const NODES = ',"nodes":[';
  const BETWEEN = '},{"id":';
  async function readReply(text, take) {
    const start = text.indexOf(NODES);
    let from = start + NODES.length;
    let cut = start < 0 ? -1 : text.indexOf(BETWEEN, from + SLICE);
    if (cut < 0) return readWhole(text, take);
    const head = JSON.parse(text.slice(0, start) + '}');
    for (; cut >= 0; cut = text.indexOf(BETWEEN, from + SLICE)) {
      JSON.parse('[' + text.slice(from, cut + 1) + ']').forEach(take);
      from = cut + 2;
      await pause();
    }
    JSON.parse('{"nodes":[' + text.slice(from)).nodes.forEach(take);
    return head;
  }

  function readWhole(text, take) {
    const reply = JSON.parse(text);
    reply.nodes.forEach(take);
    return reply;
  }

  async function takeReply(text) {
    const named = new Set();
    const reply = await readReply(text, function (node) {
      takeNode(node);
      named.add(node.id);
    });
    if (reply.full) dropAllBut(named);
    reply.removed.forEach(dropNode);
    if (reply.full || reply.removed.length) view.order = view.order.filter(stillKnown);
    store.sequence = reply.sequence;
    store.totals = reply.totals;
    store.groups = reply.groups || {};
    store.pollInterval = reply.poll_interval;
    store.skew = reply.time - Date.now() / 1000;
  }

  // ======== Sort and filter ========

  function compareKeys(a, b) {
    if (a.key === b.key) return a.addressKey < b.addressKey ? -1 : 1;
    if (a.key === null || b.key === null) return a.key === null ? 1 : -1;
    return (a.key < b.key) === view.down ? 1 : -1;
  }

  // The order of last time is nearly right, and sort() is quick on what is nearly sorted.
  function sortRecords() {
    const value = COLUMN.get(view.sort).value;
    view.order.forEach(function (rec) {
      const key = value(rec);
      rec.key = key === undefined ? null : key;
    });
    view.order.sort(compareKeys);
  }

  function searchText(rec) {
    if (rec.text === null) {
      const node = rec.node;
      const addresses = (node.addresses || []).join(' ');
      rec.text = [node.id, addresses, node.name, node.state, node.reason, node.version, node.drain ? 'draining' : '',
        node.drift ? 'drifted' : ''].concat(node.drift || []).join('\n').toLowerCase();
    }
    return rec.text;
  }

  function passes(rec) {
    if (view.group && rec.node.groups.indexOf(view.group) < 0) return false;
    if (view.state === 'drifted' ? !rec.node.drift : view.state && rec.node.state !== view.state) return false;
    return view.words.every(function (word) { return searchText(rec).indexOf(word) >= 0; });
  }

  function isFiltered() {
    return Boolean(view.state || view.group || view.words.length);
  }

  function filterRecords() {
    const all = !isFiltered();
    view.shown = all ? view.order.slice() : view.order.filter(passes);
    if (!all) view.order.forEach(function (rec) { rec.at = -1; });
    view.shown.forEach(function (rec, at) { rec.at = at; });
  }

  // ======== Drain and drift ========

  const THEN = {
    restore: 'then it gets its CPUs back',
    end: 'then dispynode ends there',
    stay: 'then it stays without jobs',
  };

  // A dispynode whose own schedule has died does not end, whatever it is told.
  function endText(told) {
    return now() - told < END_PATIENCE ? 'No job runs any more; dispynode ends there now.' :
      'Drained, but dispynode did not end there when it was told to, ' + asAge(told) + ': end it by hand, or cancel the drain.';
  }

  // "Draining for 3 m: 2 jobs still run; then dispynode ends there."
  function drainText(node) {
    const drain = node.drain;
    if (!drain) return '';
    if (drain.idle && drain.then === 'end') return endText(drain.idle);
    if (drain.idle) return 'Drained, ' + asAge(drain.idle) + ': it stays without jobs until you cancel the drain.';
    const jobs = !isNumber(drain.busy) ? 'its jobs are not known' : !drain.busy ? 'no job runs any more' :
      drain.busy === 1 ? '1 job still runs' : asCount(drain.busy) + ' jobs still run';
    return 'Draining for ' + asTimeSince(drain.since) + ': ' + jobs + '; ' + (THEN[drain.then] || drain.then) + '.';
  }

  // That a node takes no jobs goes without saying while it is drained.
  function reasonOf(node) {
    return node.drain && node.controllable ? '' : node.reason || '';
  }

  function whyOf(node) {
    return [reasonOf(node), drainText(node)].concat(node.drift || []).filter(Boolean).join(' ');
  }

  // ======== Table: geometry ========

  // A locked node that never told anything has no details to show, and on a narrow screen needs less room.
  function isBare(node) {
    return node.cpus === null && node.avail_info === null && node.jobs_done === null;
  }

  // Whether a row has a second line; whyOf says what is in it.
  function hasWhy(node) {
    return Boolean(node.reason || node.drift || node.drain);
  }

  // The style sheet says how high rows are, in rem, for each width of the screen.
  let sizes = null;
  function rowSizes() {
    if (sizes) return sizes;
    const style = getComputedStyle(els.nodes);
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    const pixels = function (name) { return parseFloat(style.getPropertyValue(name)) * rem; };
    sizes = {row: pixels('--row'), bare: pixels('--bare'), why: pixels('--why')};
    return sizes;
  }

  function measure() {
    const size = rowSizes();
    const shown = view.shown;
    const offsets = view.offsets = new Float64Array(shown.length + 1);
    for (let i = 0; i < shown.length; i += 1) {
      const node = shown[i].node;
      offsets[i + 1] = offsets[i] + (isBare(node) ? size.bare : size.row) + (hasWhy(node) ? size.why : 0);
    }
  }

  // The last row that starts at or above y.
  function rowAt(y) {
    let low = 0;
    let high = view.shown.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (view.offsets[middle] <= y) low = middle; else high = middle;
    }
    return low;
  }

  let onPaper = false;            // a print shows every row
  function rangeInView() {
    const count = view.shown.length;
    if (count <= DRAW_ALL || onPaper) return {from: 0, to: count};
    const top = els.viewport.scrollTop;
    const bottom = top + els.viewport.clientHeight;
    return {from: Math.max(0, rowAt(top) - OVERSCAN), to: Math.min(count, rowAt(bottom) + 1 + OVERSCAN)};
  }

  // ======== Table: rows ========

  function makeRow() {
    const tr = els.row.content.firstElementChild.cloneNode(true);
    const row = {tr: tr, cells: {}, node: null, box: tr.querySelector('input'), link: tr.querySelector('a'),
      state: tr.querySelector('.state'), why: tr.querySelector('.why'), mark: tr.querySelector('.why > .mark'),
      add: tr.querySelector('.why > .add')};
    Array.from(tr.querySelectorAll('[data-col]')).forEach(function (cell) { row.cells[cell.dataset.col] = cell; });
    return row;
  }

  // From now on the row is this node's.
  function giveRow(row, id) {
    row.tr.dataset.id = id;
    row.node = null;
    row.box.setAttribute('aria-label', 'Select ' + id);
    row.link.href = nodeUrl(id);
    setText(row.link, id);
    rows.set(id, row);
    return row;
  }

  function paintNode(row, node) {
    row.node = node;
    setAttr(row.tr, 'class', node.state + (hasWhy(node) ? ' has-why' : '') + (isBare(node) ? ' bare' : ''));
    setState(row.state, node.state);
    paintWhy(row, node);
    COLUMNS.forEach(function (column) {
      if (column.text) setText(row.cells[column.key], column.text(node));
    });
    METERS.forEach(function (key) { setShare(row.cells[key], available(node, key)); });
    setAttr(row.cells.name, 'title', node.name || '');
    setAttr(row.link, 'title', (node.addresses || []).concat(node.id).filter(isFirst).join('\n'));
  }

  function paintWhy(row, node) {
    const why = hasWhy(node) ? whyOf(node) : '';
    setHidden(row.why, !why && !node.drift);
    setHidden(row.mark, !node.drift);
    paintAdd(row.add, node);
    setText(row.why.lastElementChild, why);
    setAttr(row.why, 'title', why);
  }

  // A node that announces itself from an address where nothing listens names the one where it does.
  function paintAdd(button, node) {
    setHidden(button, !node.announces);
    setText(button, node.announces ? 'Add ' + node.announces : '');
  }

  function isFirst(value, at, all) {
    return all.indexOf(value) === at;
  }

  function paintRow(rec, row) {
    const chosen = view.selected.has(rec.id);
    if (row.node !== rec.node) paintNode(row, rec.node);
    else if (rec.node.drain) paintWhy(row, rec.node);   // how long it has been drained
    if (row.box.checked !== chosen) row.box.checked = chosen;
    row.tr.classList.toggle('selected', chosen);
    setText(row.cells.updated, asAge(rec.node.update_time));
    setAttr(row.tr, 'aria-rowindex', rec.at + 3);  // after the two rows of the header
  }

  function focusedRow() {
    const tr = document.activeElement && document.activeElement.closest('#rows > tr');
    return tr || null;
  }

  // The row with the focus stays in the document even when it is scrolled out of view.
  function recordsToDraw(range, focused) {
    const drawn = view.shown.slice(range.from, range.to);
    const rec = focused && store.nodes.get(focused.dataset.id);
    const lone = rec && rec.at >= 0 && (rec.at < range.from || rec.at >= range.to) ? rec : null;
    if (lone && lone.at < range.from) drawn.unshift(lone);
    else if (lone) drawn.push(lone);
    return {records: drawn, lone: lone};
  }

  // Rows whose nodes are no longer drawn, from the top: they become those of other nodes, which takes the browser less
  // time than new ones.  Where none of the rows stays, they need not even move.  Neither the focus nor a click that has
  // begun is passed on to another node.
  function takeSpare(records, focused) {
    const keep = new Set(records.map(function (rec) { return rec.id; }));
    const spare = [];
    Array.from(els.rows.children).forEach(function (tr) {
      const id = tr.dataset.id;
      if (keep.has(id)) return;
      if (tr === focused || tr.matches(':active')) tr.remove(); else spare.push(rows.get(id));
      rows.delete(id);
    });
    if (rows.size) spare.forEach(function (row) { row.tr.remove(); });
    return spare;
  }

  function drawRows() {
    const range = rangeInView();
    const focused = focusedRow();
    const draw = recordsToDraw(range, focused);
    const spare = takeSpare(draw.records, focused);
    const trs = draw.records.map(function (rec) {
      const row = rows.get(rec.id) || giveRow(spare.shift() || makeRow(), rec.id);
      paintRow(rec, row);
      return row.tr;
    });
    spare.forEach(function (row) { row.tr.remove(); });
    arrange(els.rows, trs, focused && trs.indexOf(focused) >= 0 ? focused : null);
    if (focused && !focused.isConnected) els.viewport.focus({preventScroll: true});
    drawSpace(range, draw.lone);
  }

  function drawSpace(range, lone) {
    let above = view.offsets[range.from];
    let below = view.offsets[view.shown.length] - view.offsets[range.to];
    const height = lone ? view.offsets[lone.at + 1] - view.offsets[lone.at] : 0;
    if (lone && lone.at < range.from) above -= height; else below -= height;
    setSpace(els.above, above);
    setSpace(els.below, below);
  }

  function setSpace(body, height) {
    const cell = body.firstElementChild.firstElementChild;
    setHidden(body, height <= 0);
    if (height > 0) cell.style.height = height + 'px';
  }

  let drawing = 0;
  function drawSoon() {
    if (drawing) return;
    drawing = requestAnimationFrame(function () {
      drawing = 0;
      drawRows();
    });
  }

  // ======== Selection ========

  function setSelected(id, chosen) {
    if (chosen) view.selected.add(id); else view.selected.delete(id);
  }

  function selectRange(from, to, chosen) {
    for (let i = Math.min(from, to); i <= Math.max(from, to); i += 1) setSelected(view.shown[i].id, chosen);
  }

  function onSelectClick(event) {
    const box = event.target;
    const id = box.closest('tr').dataset.id;
    const anchor = store.nodes.get(view.anchor);
    if (event.shiftKey && anchor && anchor.at >= 0) selectRange(anchor.at, store.nodes.get(id).at, box.checked);
    else setSelected(id, box.checked);
    view.anchor = id;
    updateSelection();
  }

  function onSelectAll() {
    const chosen = els['select-all'].checked;
    view.shown.forEach(function (rec) { setSelected(rec.id, chosen); });
    updateSelection();
  }

  function countSelectedShown() {
    if (!view.selected.size) return 0;
    return view.shown.reduce(function (count, rec) { return count + (view.selected.has(rec.id) ? 1 : 0); }, 0);
  }

  function updateSelection() {
    drawRows();
    updateCount();
    updateTarget();
  }

  function updateCount() {
    const shown = view.shown.length;
    const here = countSelectedShown();
    const all = els['select-all'];
    all.checked = shown > 0 && here === shown;
    all.indeterminate = here > 0 && here < shown;
    all.disabled = !shown;
    setText(els.count, countText(shown, view.selected.size, view.selected.size - here));
  }

  function countText(shown, selected, elsewhere) {
    const total = store.nodes.size;
    const nodes = shown === total ? plural(total, 'node') : asCount(shown) + ' of ' + plural(total, 'node');
    if (!selected) return nodes;
    return nodes + ', ' + asCount(selected) + ' selected' + (elsewhere ? ' (' + asCount(elsewhere) + ' of them not shown)' : '');
  }

  // ======== Cluster view ========

  function updateTotals() {
    const totals = view.group && store.groups[view.group] || store.totals || {};
    ['nodes', 'drifted'].concat(STATES).forEach(function (key) {
      const button = els['total-' + key];
      setText(button.querySelector('b'), asCount(totals[key] || 0));
      setAttr(button, 'aria-pressed', button.dataset.state === view.state);
    });
    setHidden(els['total-drifted'], !totals.drifted && view.state !== 'drifted');
    setText(els['total-cpus'], asCount(totals.cpus || 0));
    setText(els['total-busy'], asCount(totals.busy || 0));
    setText(els['total-jobs'], asCount(totals.jobs_done || 0));
    setText(els['total-time'], asDuration(totals.cpu_time || 0));
    setShare(els['total-share'], totals.cpus ? 100 * totals.busy / totals.cpus : 0);
  }

  function updateSortMarks() {
    const direction = view.down ? 'descending' : 'ascending';
    Array.from(els.nodes.querySelectorAll('th[data-sort]')).forEach(function (th) {
      setAttr(th, 'aria-sort', th.dataset.sort === view.sort ? direction : null);
    });
    els['sort-by'].value = view.sort;
    setAttr(els['sort-direction'], 'data-direction', direction);
    setAttr(els['sort-direction'], 'aria-label', (view.down ? 'Descending' : 'Ascending') + '; reverse the order');
  }

  function updateTable() {
    sortRecords();
    filterRecords();
    measure();
    setAttr(els.nodes, 'aria-rowcount', view.shown.length + 2);
    els.nodes.classList.toggle('some', view.shown.length > DRAW_ALL);
    els.viewport.classList.toggle('full', view.shown.length > DRAW_ALL);
    drawRows();
    updateCount();
    updateSortMarks();
    setHidden(els['no-match'], view.shown.length > 0 || store.denied || store.lost);
    setText(els['no-match'].firstElementChild, store.sequence === null ? 'Asking dispyadmin\u2026' : 'No node matches the filter.');
    setHidden(els['filter-clear'], store.sequence === null);
  }

  function updateCluster() {
    const empty = store.sequence !== null && !store.nodes.size;
    setHidden(els.empty, !empty);
    setHidden(els.viewport, empty);
    setHidden(els.tools, empty);
    setHidden(els.past, empty);
    if (empty) updateEmpty();
    dropUnknownGroup();
    updateTable();                // asks where the table is scrolled to, which is known while nothing else has changed
    updateTotals();
    updateGroups();
    updateDrifted();
    setHidden(els.csv, !view.shown.length);
    keepAddressSoon();
  }

  // A link may name a group that is configured no more.
  function dropUnknownGroup() {
    if (store.sequence !== null && !hasOwn(store.groups, view.group)) view.group = '';
  }

  // The choices are made anew only when the groups are others: a list that is open stays open.
  function updateGroups() {
    const names = Object.keys(store.groups);
    const select = els.group;
    setHidden(els['group-choice'], !names.length);
    setHidden(els['help-group'], !names.length);
    if (String(names) !== select.dataset.names) {
      select.dataset.names = names;
      select.textContent = '';
      [''].concat(names).forEach(function (name) { select.appendChild(make('option')).value = name; });
    }
    Array.from(select.options).forEach(function (option) {
      const totals = option.value ? store.groups[option.value] : store.totals || {};
      setText(option, (option.value || 'All nodes') + ' (' + asCount(totals.nodes || 0) + ')');
    });
    if (select.value !== view.group) select.value = view.group;
  }

  function onGroup() {
    view.group = els.group.value;
    updateCluster();
    updateTarget();
  }

  // Beside the nodes that have drifted: what can be done with all of them.
  function updateDrifted() {
    const count = view.state === 'drifted' ? view.shown.length : 0;
    setHidden(els['drifted-form'], !count);
    setText(els['drifted-text'], (count === 1 ? '1 node is' : asCount(count) + ' nodes are') + ' not as set here: started again, or changed by somebody else.');
  }

  function wordsOf(text) {
    return text.toLowerCase().split(/\s+/).filter(Boolean);
  }

  function onFilter() {
    view.words = wordsOf(els.filter.value);
    updateCluster();
  }

  function showState(state) {
    view.state = view.state === state ? '' : state;
    updateCluster();
  }

  function showAll() {
    clearFilters();
    els.filter.focus();
  }

  function clearFilters() {
    els.filter.value = '';
    view.state = view.group = '';
    onFilter();
  }

  function sortBy(key, down) {
    view.sort = key;
    view.down = down;
    updateCluster();
  }

  function onSortHeader(key) {
    sortBy(key, key === view.sort ? !view.down : Boolean(COLUMN.get(key).down));
  }

  // ======== Empty state ========

  const PORT_STATES = {
    held: 'listening now',
    resting: 'given up for a moment, so that a dispy client on this machine can start',
    'left to a client': 'a dispy client on this machine has it; nodes are found by asking instead',
    'own addresses': 'what is sent to this machine alone is heard; all others are found by asking',
    off: 'not listened on; nodes are found by asking instead',
  };

  function waysToFind(about) {
    const ports = (about.info_ports || []).map(function (info) {
      return 'Nodes that announce themselves to port ' + info.port + ': ' + (PORT_STATES[info.state] || info.state) + '.';
    });
    const asks = (about.asks || []).map(function (ask) { return ask.to + ' from ' + ask.address; });
    const every = about.search_interval ? ', every ' + asDuration(about.search_interval) : '';
    const to = (about.node_ports || []).join(' and ');
    if (asks.length) ports.push('Asking at ' + asks.join(', ') + ', on node ports ' + to + every + ' and with Scan.');
    return ports;
  }

  function updateEmpty() {
    const about = store.about;
    if (!about) return;
    setText(els['empty-command'], 'dispynode.py --admin_secret SECRET' +
      (about.multicast ? ' --ipv4_udp_multicast' : '') + (about.tls ? ' --certfile FILE' : ''));
    setText(els['empty-secret'], (about.secrets ? 'SECRET is the one that dispyadmin was given' : 'No admin secret is set here yet. Choose one, and set it') +
      (about.secrets ? ', or another that you set under Admin secret.' : ' under Admin secret as well.'));
    els['empty-ways'].textContent = '';
    waysToFind(about).forEach(function (way) { els['empty-ways'].appendChild(make('li', way)); });
  }

  function updateAbout() {
    const about = store.about;
    if (!about) return;
    const hosts = (about.hosts || []).join(', ');
    setText(els.about, 'dispyadmin ' + (about.version || '') + (hosts ? ' on ' + hosts : ''));
  }

  async function askAbout() {
    store.about = await request('GET', 'api/about').catch(function () { return store.about; });
    updateAbout();
    if (!store.nodes.size) updateEmpty();
  }

  // ======== Node view ========

  function asServe(serve) {
    if (!isNumber(serve)) return DASH;
    if (serve < 0) return 'without limit';
    if (serve === 0) return 'takes no more clients';
    return plural(serve, 'more client') + ', then the node program exits';
  }

  function asManaged(node) {
    return isNumber(node.max_cpus) ? asCount(node.cpus) + ' of the machine\u2019s ' + asCount(node.max_cpus) : asCount(node.cpus);
  }

  function asServiceTime(node, time) {
    return isBare(node) ? DASH : isNumber(time) ? asMoment(time) : 'not set';
  }

  function busyShare(node) {
    return isNumber(node.busy) && node.cpus ? 100 * node.busy / node.cpus : null;
  }

  // Groups of [field, label, text, share of a meter].
  const FACTS = [
    ['Work', [
      ['cpus', 'CPUs managed by dispy', asManaged],
      ['busy', 'Running jobs', function (node) { return asCount(node.busy); }, busyShare],
      ['scheduler_ip', 'Current client at', function (node) { return node.scheduler_ip || (isBare(node) ? DASH : 'none'); }],
      ['jobs_done', 'Jobs done', function (node) { return asCount(node.jobs_done); }],
      ['cpu_time', 'CPU time of finished jobs', function (node) { return asDuration(node.cpu_time); }],
      ['clients_done', 'Clients done', function (node) { return asCount(node.clients_done); }],
      ['serve', 'Clients to serve', function (node) { return asServe(node.serve); }],
    ]],
    ['Available', [
      ['cpu', 'CPU', function (node) { return asPercent(available(node, 'cpu')); }, function (node) { return available(node, 'cpu'); }],
      ['memory', 'Memory', function (node) { return asSize(available(node, 'memory')); }],
      ['swap', 'Swap', function (node) { return asPercent(available(node, 'swap')); }, function (node) { return available(node, 'swap'); }],
      ['disk', 'Disk', function (node) { return asSize(available(node, 'disk')); }],
    ]],
    ['Service times', [
      ['service_start', 'Start: takes jobs', function (node) { return asServiceTime(node, node.service_start); }],
      ['service_stop', 'Stop: takes no more jobs', function (node) { return asServiceTime(node, node.service_stop); }],
      ['service_end', 'End: running jobs are ended', function (node) { return asServiceTime(node, node.service_end); }],
    ]],
    ['Identity', [
      ['id', 'Address and port', function (node) { return node.id; }],
      ['name', 'Name', function (node) { return orDash(node.name); }],
      ['addresses', 'Seen at', function (node) { return orDash((node.addresses || []).join('\n')); }],
      ['groups', 'Groups', function (node) { return node.groups.join(', ') || 'none'; }],
      ['version', 'dispy release', function (node) { return orDash(node.version); }],
      ['first_seen', 'First seen', function (node) { return asMomentAndAge(node.first_seen); }],
      ['update_time', 'Last update', function (node) { return asMomentAndAge(node.update_time); }],
    ]],
  ];
  const facts = [];               // {dd, text, share}, one for each line above

  function buildFact(list, fact) {
    const pair = make('div');
    const dd = make('dd');
    dd.dataset.field = fact[0];
    pair.appendChild(make('dt', fact[1]));
    pair.appendChild(dd);
    if (fact[3]) dd.className = 'meter';
    list.appendChild(pair);
    facts.push({dd: dd, text: fact[2], share: fact[3]});
  }

  function buildFacts() {
    FACTS.forEach(function (group) {
      const section = make('section', undefined, 'panel');
      const list = make('dl');
      section.classList.toggle('detail', group[0] !== 'Identity');   // what a node tells only when it is opened
      section.appendChild(make('h2', group[0]));
      section.appendChild(list);
      group[1].forEach(function (fact) { buildFact(list, fact); });
      if (group[0] === 'Service times') {
        const zone = zoneName(new Date());
        section.appendChild(make('p', 'Times are shown in this browser\u2019s time zone, ' + zone + '; they are set in the node\u2019s own local time.', 'hint'));
      }
      els['node-facts'].appendChild(section);
    });
  }

  // How well a node fits what was asked for: 3 its address, 2 its name, 1 another of its addresses, 0 not at all.
  function fit(node, host) {
    const same = function (text) { return Boolean(text) && String(text).toLowerCase() === host; };
    if (same(node.id) || same(node.ip_addr)) return 3;
    return same(node.name) ? 2 : (node.addresses || []).some(same) ? 1 : 0;
  }

  function findRecord(host) {
    let best = null;
    let bestFit = 0;
    store.nodes.forEach(function (rec) {
      const its = fit(rec.node, host);
      if (its < bestFit || !its || (its === bestFit && rec.addressKey > best.addressKey)) return;
      best = rec;
      bestFit = its;
    });
    return best;
  }

  // ADDRESS:PORT names one node; of several with an address or a name, the first in the order of addresses is meant.
  function currentRecord() {
    if (view.name !== 'node' || !view.host) return null;
    const host = view.host.trim().toLowerCase();
    return store.nodes.get(view.host) || findRecord(host.replace(/^\[([^\]]*)\]$/, '$1'));
  }

  function updateNotice(node) {
    const reason = reasonOf(node);
    setHidden(els['node-why'], node.state !== 'unreachable' && node.state !== 'locked');
    paintAdd(els['node-add'], node);
    setHidden(els['node-notice'], !reason);
    els['node-notice'].dataset.state = node.state;
    setText(els['node-notice'].firstElementChild, node.controllable ? '' : node.state === 'unreachable' ? 'It cannot be controlled now.' : 'It cannot be controlled.');
    setText(els['node-notice'].querySelector('span'), reason);
    if (els['node-diagnosis'].dataset.id !== node.id) closeDiagnosis(els['node-diagnosis']);
    setHidden(els['node-drain'], !node.drain);
    setText(els['node-drain'], node.drain ? drainText(node) + ' Asked for by ' + node.drain.by + '.' : '');
    updateDrift(node);
  }

  function updateDrift(node) {
    const list = els['drift-list'];
    const sentences = node.drift || [];
    setHidden(els['drift-form'], !node.drift);
    while (list.children.length > sentences.length) list.lastElementChild.remove();
    while (list.children.length < sentences.length) list.appendChild(make('li'));
    sentences.forEach(function (sentence, at) { setText(list.children[at], sentence); });
  }

  function updateNode(node) {
    setText(els['node-title'], node.id);
    setText(els['node-name'], node.name || '');
    setState(els['node-state'], node.state);
    updateNotice(node);
    els.node.classList.toggle('unreachable', node.state === 'unreachable');
    els['node-facts'].classList.toggle('bare', isBare(node));
    setHidden(els['node-past'], isBare(node));
    setHidden(els.node.querySelector('[data-field="groups"]').parentNode, !Object.keys(store.groups).length);
    facts.forEach(function (fact) {
      setText(fact.dd, fact.text(node));
      if (fact.share) setShare(fact.dd, fact.share(node));
    });
  }

  function chooserText() {
    if (store.sequence === null) return 'Asking dispyadmin\u2026';
    if (view.host) return 'No node is known as ' + view.host + '. It may have been forgotten, or it has not been found yet.' + (store.nodes.size ? ' These are known:' : '');
    return store.nodes.size ? 'Choose a node to see everything known of it.' : 'No nodes are known yet.';
  }

  function makeChoice(rec) {
    const item = make('li');
    const link = make('a', rec.id);
    const state = els.row.content.querySelector('.state').cloneNode(true);
    link.href = nodeUrl(rec.id);
    setState(state, rec.node.state);
    item.appendChild(link);
    item.appendChild(make('span', rec.node.name || '', 'name'));
    item.appendChild(state);
    item.dataset.id = rec.id;
    return item;
  }

  // Made anew only when something in it changed, so that the focus stays where it is.
  let chosenFrom = '';
  function updateChooser() {
    sortRecords();
    const words = wordsOf(els['choose-filter'].value);
    const found = view.order.filter(function (rec) {
      return words.every(function (word) { return searchText(rec).indexOf(word) >= 0; });
    });
    const some = found.slice(0, CHOICES);
    const print = some.map(function (rec) { return rec.id + rec.node.state + rec.node.name; }).join('\n');
    setText(els['chooser-text'], chooserText());
    setText(els['choose-more'], found.length > some.length ? 'and ' + asCount(found.length - some.length) + ' more: filter to find them' : '');
    if (print === chosenFrom) return;
    chosenFrom = print;
    els['choose-list'].textContent = '';
    some.forEach(function (rec) { els['choose-list'].appendChild(makeChoice(rec)); });
  }

  // ======== History: charts of the last hours ========
  // Asked for only while somebody looks at it; drawn anew with each reply, and when the width has changed.

  const PAST_PACE = 10;           // seconds between requests, at least
  const LEAST_SAMPLES = 20;       // the time axis shows room for so many, at least
  const TIME_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440];     // minutes between labels of the time axis
  const SVG = 'http://www.w3.org/2000/svg';

  // The least 1, 2 or 5 with zeros, before or behind, that is no less.
  function roundStep(least) {
    const power = Math.pow(10, Math.floor(Math.log10(least)));
    return power * [1, 2, 5, 10].find(function (digit) { return digit * power >= least * .9999; });
  }

  // A value axis that reaches `most`: four steps at most, of `least` units or more.
  function axisTo(most, unit, least, name) {
    const step = Math.max(least, roundStep(most / unit / 4));
    const count = Math.max(1, Math.ceil(most / unit / step - .0001));
    return {top: count * step * unit, ticks: Array.from({length: count + 1}, function (_, number) {
      return {at: number * step * unit, label: asCount(number * step) + name};
    })};
  }

  function sizeAxis(most) {
    const size = most >= 1 ? most : Math.pow(1024, 3);      // nothing, or nothing known
    const unit = Math.pow(1024, Math.min(5, Math.floor(Math.log2(size) / 10)));
    return axisTo(size, unit, 0, ' ' + asSize(unit).split(' ')[1]);
  }

  // What a value is: text(value) as it is read, axis(largest) how it is drawn.
  const COUNTS = {text: asCount, axis: function (most) { return axisTo(Math.max(1, most), 1, 1, ''); }};
  const PERCENT = {text: asPercent, axis: function () { return axisTo(100, 1, 50, ' %'); }};
  const SIZES = {text: asSize, axis: sizeAxis};

  // series: [name in the reply, label, class of its line]; the area under the first is tinted where it is alone in its kind.
  const CLUSTER_CHARTS = [
    {key: 'busy', title: 'Busy CPUs', kind: COUNTS, area: true, series: [['busy', 'busy', 'line-1'], ['cpus', 'CPUs', 'line-2']]},
    {key: 'cpu', title: 'Available CPU', kind: PERCENT, area: true, series: [['cpu', 'mean of nodes', 'line-1']]},
    {key: 'memory', title: 'Available memory', kind: SIZES, area: true, series: [['memory', 'sum of nodes', 'line-1']]},
    {key: 'nodes', title: 'Nodes', kind: COUNTS, series: [['ready', 'ready', 'line-ready'], ['unreachable', 'unreachable', 'line-lost']]},
  ];
  const NODE_CHARTS = [
    {key: 'busy', title: 'Busy CPUs', kind: COUNTS, area: true, series: [['busy', 'busy', 'line-1']]},
    {key: 'cpu', title: 'Available CPU', kind: PERCENT, area: true, series: [['cpu', 'available', 'line-1']]},
    {key: 'memory', title: 'Available memory', kind: SIZES, area: true, series: [['memory', 'available', 'line-1']]},
  ];

  // Of the cluster (id '') and of the node last looked at: what was answered, when it was asked, why there was no answer.
  const clusterPast = {id: '', charts: [], hint: null, reply: null, asked: 0, problem: ''};
  const nodePast = {id: '', charts: [], hint: null, reply: null, asked: 0, problem: ''};

  function shape(parent, tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    Object.keys(attributes).forEach(function (name) { element.setAttribute(name, attributes[name]); });
    if (text !== undefined) element.textContent = text;
    parent.appendChild(element);
    return element;
  }

  // ---- one chart: {spec, plot, still, moving, when, values, said, reply, at, scale}
  //   at  number of the sample under the pointer or the keys' cursor, null: the latest one is told; scale  as drawn.

  function makeChart(box, spec) {
    const figure = make('figure', undefined, 'chart');
    const caption = make('figcaption');
    const chart = {spec: spec, when: make('span', '', 'when'), said: make('p', '', 'unseen'), values: [], reply: null, at: null, scale: null};
    const series = make('span', undefined, 'series');
    figure.dataset.chart = spec.key;
    spec.series.forEach(function (its) { chart.values.push(makeKey(series, its)); });
    [make('b', spec.title), chart.when, series].forEach(function (part) { caption.appendChild(part); });
    figure.appendChild(caption);
    chart.plot = shape(figure, 'svg', {class: 'plot', tabindex: '0', role: 'application', 'aria-roledescription': 'chart',
      'aria-label': spec.title + ', the last hours: left and right arrow keys read single values'});
    chart.still = shape(chart.plot, 'g', {'aria-hidden': 'true'});
    chart.moving = shape(chart.plot, 'g', {'aria-hidden': 'true'});
    chart.said.setAttribute('aria-live', 'polite');
    figure.appendChild(chart.said);
    wireChart(chart);
    box.appendChild(figure);
    return chart;
  }

  // One entry of the key: a piece of the line, what it means, and the place of its value.
  function makeKey(parent, series) {
    const entry = make('span');
    const value = make('b');
    shape(shape(entry, 'svg', {viewBox: '0 0 20 8', 'aria-hidden': 'true'}), 'path', {d: 'M1,4H19', class: series[2]});
    entry.appendChild(document.createTextNode(series[1] + ' '));
    entry.appendChild(value);
    parent.appendChild(entry);
    return value;
  }

  function wireChart(chart) {
    const point = function (event) { readAt(chart, sampleAt(chart, event.clientX), false); };
    const leave = function () { readAt(chart, null, false); };
    chart.plot.addEventListener('pointermove', point);
    chart.plot.addEventListener('pointerdown', point);
    chart.plot.addEventListener('pointerleave', function () { if (document.activeElement !== chart.plot) leave(); });
    chart.plot.addEventListener('blur', leave);
    chart.plot.addEventListener('keydown', function (event) { onChartKey(chart, event); });
  }

  function onChartKey(chart, event) {
    const steps = {ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity};
    const last = samplesOf(chart.reply) - 1;
    if (event.key === 'Escape') readAt(chart, null, false);
    if (!(event.key in steps) || last < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const step = steps[event.key];
    const at = chart.at !== null ? chart.at + step : isFinite(step) ? last : step;
    readAt(chart, Math.max(0, Math.min(last, at)), true);
  }

  function samplesOf(reply) {
    return reply && reply.since !== null ? reply.busy.length : 0;
  }

  function timeOf(reply, at) {
    return reply.since + at * reply.interval;
  }

  function sampleAt(chart, clientX) {
    const count = samplesOf(chart.reply);
    if (!chart.scale || !count) return null;
    const box = chart.plot.getBoundingClientRect();
    const time = chart.scale.timeAt((clientX - box.left) * chart.scale.width / box.width);
    return Math.max(0, Math.min(count - 1, Math.round((time - chart.reply.since) / chart.reply.interval)));
  }

  // Tells the sample at this place, or the latest one; by keys, a screen reader is told too.
  function readAt(chart, at, aloud) {
    const reply = chart.reply;
    const shown = at === null ? samplesOf(reply) - 1 : at;
    const known = shown >= 0;
    chart.at = at;
    const values = chart.spec.series.map(function (series) { return known ? reply[series[0]][shown] : null; });
    values.forEach(function (value, number) { setText(chart.values[number], chart.spec.kind.text(value)); });
    setText(chart.when, known ? whenText(reply, shown, values) : '');
    setText(chart.said, aloud ? whenText(reply, shown, values) + ': ' + spoken(chart, values) : '');
    drawCursor(chart, values);
  }

  function whenText(reply, at, values) {
    const date = new Date(timeOf(reply, at) * 1000);
    const clock = asClock(date) + (reply.interval < 60 ? ':' + twoDigits(date.getSeconds()) : '');
    if (values.some(isNumber)) return clock;
    return clock + ', ' + (reply.state && /locked|unreachable/.test(reply.state[at]) ? reply.state[at] : 'nothing known');
  }

  function spoken(chart, values) {
    return chart.spec.series.map(function (series, number) {
      return series[1] + ' ' + (isNumber(values[number]) ? chart.spec.kind.text(values[number]) : 'not known');
    }).join(', ');
  }

  function drawCursor(chart, values) {
    const scale = chart.scale;
    chart.moving.textContent = '';
    if (chart.at === null || !scale) return;
    const x = scale.x(chart.at);
    shape(chart.moving, 'line', {x1: x, x2: x, y1: scale.y(scale.top), y2: scale.y(0), class: 'cursor'});
    values.forEach(function (value, number) {
      if (isNumber(value)) shape(chart.moving, 'circle', {cx: x, cy: scale.y(value), r: 3.5, class: chart.spec.series[number][2]});
    });
  }

  // ---- drawing

  function sizeOf(chart) {
    const box = chart.plot.getBoundingClientRect();
    return {width: Math.round(box.width), height: Math.round(box.height)};
  }

  function widthOf(chart, label) {
    const text = shape(chart.still, 'text', {}, label);
    const width = text.getComputedTextLength();
    text.remove();
    return width;
  }

  // Where things are, in pixels: room for the labels of the value axis on the left, of the time axis below.
  function scaleOf(chart, axis) {
    const reply = chart.reply;
    const size = sizeOf(chart);
    const letter = parseFloat(getComputedStyle(chart.plot).fontSize);
    const longest = Math.max.apply(null, axis.ticks.map(function (tick) { return widthOf(chart, tick.label); }));
    const left = Math.max(Math.ceil(longest) + 6, Math.ceil(letter * 1.6));
    const right = size.width - letter * 1.5;
    const bottom = size.height - Math.round(letter * 1.6);
    const from = Math.min(reply.since === null ? reply.time : reply.since, reply.time - LEAST_SAMPLES * reply.interval);
    const perSecond = (right - left) / (reply.time - from);
    return {
      width: size.width, height: size.height, left: left, right: right, bottom: bottom, letter: letter, top: axis.top, from: from, to: reply.time,
      xOf: function (time) { return pixels(left + Math.max(0, time - from) * perSecond); },
      x: function (at) { return pixels(left + Math.max(0, timeOf(reply, at) - from) * perSecond); },
      y: function (value) { return pixels(bottom - (bottom - letter * .6) * value / axis.top); },
      timeAt: function (x) { return from + (x - left) / perSecond; },
    };
  }

  function pixels(number) {
    return Math.round(number * 10) / 10;
  }

  function largest(chart) {
    return chart.spec.series.reduce(function (most, series) {
      return chart.reply[series[0]].reduce(function (a, b) { return isNumber(b) && b > a ? b : a; }, most);
    }, 0);
  }

  function drawChart(chart, reply) {
    if (chart.at !== null && chart.reply !== reply) chart.at = sameMoment(chart, reply);
    chart.reply = reply;
    const axis = chart.spec.kind.axis(largest(chart));
    const scale = chart.scale = scaleOf(chart, axis);
    setAttr(chart.plot, 'viewBox', '0 0 ' + scale.width + ' ' + scale.height);
    chart.still.textContent = '';
    drawUnknown(chart.still, chart, scale);
    drawValueAxis(chart.still, axis, scale);
    drawTimeAxis(chart.still, scale);
    chart.spec.series.slice().reverse().forEach(function (series) { drawSeries(chart.still, chart, series, scale); });
    readAt(chart, chart.at, false);
  }

  // Where the cursor stands in a new reply: at the same moment.
  function sameMoment(chart, reply) {
    const count = samplesOf(reply);
    if (!count || !samplesOf(chart.reply)) return null;
    return Math.max(0, Math.min(count - 1, Math.round((timeOf(chart.reply, chart.at) - reply.since) / reply.interval)));
  }

  function drawValueAxis(parent, axis, scale) {
    axis.ticks.forEach(function (tick) {
      const y = scale.y(tick.at);
      shape(parent, 'line', {x1: scale.left, x2: scale.right, y1: y, y2: y, class: tick.at ? 'grid' : 'axis'});
      shape(parent, 'text', {x: scale.left - 5, y: pixels(y + scale.letter * .35), 'text-anchor': 'end'}, tick.label);
    });
  }

  // At full minutes and hours of this browser's clock.
  function drawTimeAxis(parent, scale) {
    const fits = (scale.to - scale.from) * scale.letter * 4 / (scale.right - scale.left);
    const step = 60 * (TIME_STEPS.find(function (minutes) { return 60 * minutes >= fits; }) || TIME_STEPS[TIME_STEPS.length - 1]);
    const ahead = new Date(scale.to * 1000).getTimezoneOffset() * -60;
    for (let time = Math.ceil((scale.from + ahead) / step) * step - ahead; time <= scale.to; time += step) {
      const x = scale.xOf(time);
      shape(parent, 'line', {x1: x, x2: x, y1: scale.bottom, y2: scale.bottom + 3, class: 'axis'});
      shape(parent, 'text', {x: x, y: pixels(scale.bottom + scale.letter * 1.35), 'text-anchor': 'middle'}, asClock(new Date(time * 1000)));
    }
  }

  // Runs of samples: [first, last] of those for which test(number) holds.
  function runsOf(count, test) {
    const runs = [];
    for (let at = 0; at < count; at += 1) {
      const last = runs[runs.length - 1];
      if (!test(at)) continue;
      if (last && last[1] === at - 1) last[1] = at; else runs.push([at, at]);
    }
    return runs;
  }

  // A band where nothing was known, so that a gap does not look like a zero.
  function drawUnknown(parent, chart, scale) {
    const count = samplesOf(chart.reply);
    const unknown = function (at) {
      return chart.spec.series.every(function (series) { return !isNumber(chart.reply[series[0]][at]); });
    };
    runsOf(count, unknown).forEach(function (run) {
      const left = run[0] ? scale.x(run[0] - 1) : scale.x(run[0]);
      const right = run[1] === count - 1 ? scale.right : scale.x(run[1] + 1);
      const top = scale.y(scale.top);
      shape(parent, 'rect', {x: left, y: top, width: pixels(right - left), height: pixels(scale.bottom - top), class: 'unknown'});
    });
  }

  // A piece of line for each run of values; a lone value is a short dash.
  function drawSeries(parent, chart, series, scale) {
    const values = chart.reply[series[0]];
    const lines = [];
    const areas = [];
    runsOf(samplesOf(chart.reply), function (at) { return isNumber(values[at]); }).forEach(function (run) {
      const points = values.slice(run[0], run[1] + 1).map(function (value, number) {
        return scale.x(run[0] + number) + ',' + scale.y(value);
      });
      lines.push(points.length > 1 ? 'M' + points.join('L') :
        'M' + pixels(scale.x(run[0]) - 1.5) + ',' + scale.y(values[run[0]]) + 'h3');
      areas.push('M' + scale.x(run[0]) + ',' + scale.bottom + 'L' + points.join('L') + 'V' + scale.bottom + 'Z');
    });
    if (!lines.length) return;
    if (chart.spec.area && series[2] === 'line-1') shape(parent, 'path', {d: areas.join(''), class: 'area'});
    shape(parent, 'path', {d: lines.join(''), class: series[2], 'data-series': series[0]});
  }

  // ---- what is shown

  function pastHint(past) {
    if (past.problem) return 'The history cannot be shown: ' + past.problem;
    if (!past.reply) return 'Asking dispyadmin\u2026';
    return samplesOf(past.reply) ? '' : 'Nothing yet: a value comes every ' + asDuration(past.reply.interval) + '.';
  }

  function drawPast(past) {
    setText(past.hint, pastHint(past));
    past.charts.forEach(function (chart) {
      const width = sizeOf(chart).width;
      const same = chart.reply === past.reply && chart.scale && chart.scale.width === width;
      if (past.reply && width && !same) drawChart(chart, past.reply);
    });
  }

  // Asks for what is looked at, when that is due.
  async function lookBack(past, id, path) {
    const pace = Math.max(PAST_PACE, past.reply ? past.reply.interval / 2 : 0);
    if (document.hidden || Date.now() - past.asked < pace * 1000) return;
    past.asked = Date.now();
    try {
      const reply = await request('GET', path);
      if (past.id !== id) return;
      past.reply = id ? reply.history : reply;
      past.problem = '';
    } catch (error) {
      if (error.status === undefined) throw error;
      if (past.id === id) past.problem = error.message;
    }
    updateHistory();
  }

  function updateHistory() {
    const rec = currentRecord();
    const able = !store.lost && !store.denied && store.sequence !== null;
    if (view.name === 'cluster' && els.past.open && !els.past.hidden) {
      drawPast(clusterPast);
      if (able) lookBack(clusterPast, '', 'api/history');
    } else if (rec && !isBare(rec.node)) {
      if (nodePast.id !== rec.id) turnTo(rec.id);
      drawPast(nodePast);
      if (able) lookBack(nodePast, rec.id, 'api/nodes/' + encodeURIComponent(rec.id));
    }
  }

  // What is drawn is another node's.
  function turnTo(id) {
    Object.assign(nodePast, {id: id, reply: null, asked: 0, problem: ''});
    nodePast.charts.forEach(function (chart) {
      chart.reply = chart.scale = null;
      chart.still.textContent = '';
      readAt(chart, null, false);
    });
  }

  // Whether it is unfolded is remembered for this visit; where the browser keeps nothing, for this page.
  function onFold() {
    try { sessionStorage.setItem('history', els.past.open ? 'open' : ''); } catch (error) { /* it may keep nothing */ }
    updateHistory();
    drawSoon();                   // the table is lower or higher now
  }

  function buildHistory() {
    clusterPast.hint = els['past-hint'];
    nodePast.hint = els['node-past-hint'];
    clusterPast.charts = CLUSTER_CHARTS.map(function (spec) { return makeChart(els['past-charts'], spec); });
    nodePast.charts = NODE_CHARTS.map(function (spec) { return makeChart(els['node-charts'], spec); });
    try { els.past.open = sessionStorage.getItem('history') === 'open'; } catch (error) { /* it keeps nothing */ }
    els.past.addEventListener('toggle', onFold);
  }

  // ======== Controls: what they apply to ========

  function targetIds() {
    const rec = currentRecord();
    if (view.name === 'node') return rec ? [rec.id] : [];
    return Array.from(view.selected);
  }

  function targetRecords() {
    return targetIds().map(function (id) { return store.nodes.get(id); }).filter(Boolean);
  }

  function nodesText(ids) {
    return ids.length === 1 ? ids[0] : plural(ids.length, 'node');
  }

  function onNodes(ids) {
    return ' on ' + nodesText(ids);
  }

  function updateTargetOfCluster() {
    const count = view.selected.size;
    setText(els['target-title'], count ? plural(count, 'selected node') : 'Selected nodes');
    const here = countSelectedShown();
    setText(els['target-hint'], !count ? 'Select nodes in the table first; these controls then apply to them.' :
      here < count ? asCount(count - here) + ' of them are not shown: the filter hides them.' : 'These controls apply to all of them.');
    els['target-fields'].disabled = !count;
    els.forget.disabled = !count;
  }

  function updateTargetOfNode(rec) {
    const able = Boolean(rec && rec.node.controllable);
    setText(els['target-title'], 'This node');
    setText(els['target-hint'], able ? '' : 'Not available: the node ' + (rec ? 'cannot be controlled' : 'is not known') + '.');
    els['target-fields'].disabled = !able;
    els.forget.disabled = !rec;
  }

  // Ids of those that the controls apply to and that are being drained.
  function drainedTargets() {
    const rec = currentRecord();
    if (view.name === 'node') return rec && rec.node.drain ? [rec.id] : [];
    return Array.from(store.draining).filter(function (id) { return view.selected.has(id); });
  }

  function updateCancel() {
    const count = drainedTargets().length;
    setHidden(els['cancel-form'], !count);
    setText(els['cancel-hint'], count && view.name === 'cluster' ? asCount(count) + ' of them ' + (count === 1 ? 'is' : 'are') + ' being drained. They get their CPUs back.' : 'It gets its CPUs back.');
  }

  function updateTarget() {
    const single = view.name === 'node';
    updateCancel();
    if (single) updateTargetOfNode(currentRecord()); else updateTargetOfCluster();
    setHidden(els['target-hint'], !els['target-hint'].textContent);
    setHidden(els['clients-form'], !single);
    setHidden(els.target, single ? !currentRecord() : store.sequence !== null && !store.nodes.size);
    setText(els['poll-hint'], single && currentRecord() ? 'Now polls this node right away; the interval is that of all nodes.' : 'Now polls all nodes right away.');
  }

  const SERVICE_HINTS = {
    start: 'The node takes jobs from this time on.',
    stop: 'From this time on the node takes no new jobs; running ones go on.',
    end: 'At this time running jobs are ended, and dispynode itself: it has to be started again there.',
  };

  function updateServiceHint() {
    setText(els['service-hint'], SERVICE_HINTS[els['service-control'].value] + ' In the node\u2019s own local time.');
  }

  // What the administrator is typing stays.
  let intervalTyped = false;
  function updateInterval() {
    const input = els['poll-interval'];
    if (intervalTyped || document.activeElement === input || store.pollInterval === null) return;
    if (input.value !== String(store.pollInterval)) input.value = store.pollInterval;
  }

  // ======== Outcome ========

  const KINDS = ['done', 'refused', 'unreachable', 'locked'];
  // Of the operation that the panel shows: ids that failed; again(ids) tries once more; its number, if it can be undone.
  const outcome = {failed: [], again: null, undo: null, title: ''};

  // A result may name its kind itself; else what is known of the node tells why it failed.
  function kindOf(result) {
    if (result.ok) return 'done';
    if (result.outcome) return String(result.outcome);
    const rec = store.nodes.get(result.id);
    if (!rec) return 'failed';
    const state = rec.node.state;
    return state === 'locked' || state === 'unreachable' ? state : 'refused';
  }

  // [[what its lines have in common, lines]], the kinds that are known first.
  function groupsOf(lines) {
    const groups = new Map(KINDS.map(function (kind) { return [kind, []]; }));
    lines.forEach(function (line) {
      if (!groups.has(line.kind)) groups.set(line.kind, []);
      groups.get(line.kind).push(line);
    });
    return Array.from(groups).filter(function (group) { return group[1].length; });
  }

  function tally(groups) {
    return groups.map(function (group) { return asCount(group[1].length) + ' ' + group[0]; }).join(', ');
  }

  function makeLine(line) {
    const item = make('li', undefined, line.mark || (line.ok ? 'done' : 'failed'));
    item.dataset.id = line.id;
    item.appendChild(make('b', line.id + (line.message ? ':' : '')));
    if (line.message) item.appendChild(make('span', ' ' + line.message));
    return item;
  }

  // A list whose lines are drawn some at a time.
  function fillList(parent, lines) {
    const list = make('ul');
    const more = make('button');
    let drawn = 0;
    const draw = function () {
      lines.slice(drawn, drawn + LIST_STEP).forEach(function (line) { list.appendChild(makeLine(line)); });
      drawn = Math.min(drawn + LIST_STEP, lines.length);
      setHidden(more, drawn === lines.length);
      setText(more, 'Show ' + asCount(Math.min(LIST_STEP, lines.length - drawn)) + ' more of ' + asCount(lines.length));
    };
    more.type = 'button';
    more.addEventListener('click', draw);
    parent.appendChild(list);
    parent.appendChild(more);
    draw();
  }

  // Each group unfolds to its nodes; a group that is small is unfolded from the start.  What all have in common need not be
  // said where the summary says it.
  function drawGroups(parent, groups, summed) {
    parent.textContent = '';
    setHidden(parent, !groups.length);
    const alone = summed && groups.length === 1 && groups[0][1].length <= READ_OUT;
    groups.forEach(function (group) {
      if (alone) return fillList(parent, group[1]);
      const details = make('details');
      details.dataset.kind = group[0];
      details.appendChild(make('summary', asCount(group[1].length) + ' ' + group[0]));
      details.addEventListener('toggle', function () { if (details.open && !details.querySelector('ul')) fillList(details, group[1]); });
      details.open = group[1].length <= READ_OUT;
      return parent.appendChild(details);
    });
  }

  function openOutcome(summary, groups, state) {
    const count = groups.reduce(function (sum, group) { return sum + group[1].length; }, 0);
    setAttr(els['outcome-groups'], 'aria-live', count <= READ_OUT ? 'polite' : 'off');
    els.outcome.dataset.state = state;
    setHidden(els.outcome, false);
    setHidden(els['outcome-progress'], true);
    setText(els['outcome-summary'], summary);
    drawGroups(els['outcome-groups'], groups, true);
    setHidden(els['outcome-retry'], !outcome.again || !outcome.failed.length);
    setHidden(els['outcome-select'], !outcome.failed.length || view.name !== 'cluster');
    setHidden(els['outcome-undo'], !outcome.undo);
  }

  function showResults(title, reply, otherwise, again) {
    const lines = (reply.results || []).map(function (result) {
      return {id: String(result.id), ok: Boolean(result.ok), kind: kindOf(result), message: String(result.message || (result.ok ? 'done' : 'failed'))};
    });
    const groups = groupsOf(lines);
    const known = function (line) { return !line.ok && store.nodes.has(line.id); };
    outcome.failed = lines.filter(known).map(function (line) { return line.id; });
    outcome.again = again || null;
    outcome.undo = reply.undo ? reply.operation : null;
    outcome.title = title;
    const failed = lines.some(function (line) { return !line.ok; });
    openOutcome(title + ': ' + (lines.length ? tally(groups) : otherwise || 'done'), groups, failed ? 'failed' : 'done');
  }

  function closeOutcome() {
    const inside = els.outcome.contains(document.activeElement);
    setHidden(els.outcome, true);
    if (inside) els.main.focus({preventScroll: true});
  }

  function retryFailed() {
    if (outcome.again) outcome.again(outcome.failed);
  }

  function selectFailed() {
    view.selected = new Set(outcome.failed);
    showAll();
  }

  function undo(number, done) {
    return act(els.outcome, 'Undo: ' + done, function (label) {
      return request('POST', 'api/undo', {operation: number, label: label});
    });
  }

  // ======== Progress ========

  // While an operation runs: how many of its nodes are done, as the server counts them.
  function watchProgress(title, label) {
    let over = false;
    const look = async function () {
      if (over) return;
      const reply = await request('GET', 'api/operations').catch(function () { return {operations: []}; });
      const found = reply.operations.find(function (operation) { return operation.label === label; });
      if (over) return;
      if (found && found.nodes > 1) {
        setText(els['outcome-summary'], title + '\u2026 ' + asCount(found.done) + ' of ' + asCount(found.nodes));
        els['outcome-progress'].max = found.nodes;
        els['outcome-progress'].value = found.done;
        setHidden(els['outcome-progress'], false);
      }
      setTimeout(look, PROGRESS * 1000);
    };
    setTimeout(look, PROGRESS * 1000);
    return function () { over = true; };
  }

  function newLabel() {
    return Date.now().toString(36) + '-' + Math.random().toString(36).slice(2);
  }

  // ======== Actions ========

  function showError(form, sentence, input) {
    setText(form.querySelector('.error'), sentence);
    if (!input) return;
    input.setAttribute('aria-invalid', 'true');
    input.focus();
  }

  function clearError(form) {
    setText(form.querySelector('.error'), '');
    Array.from(form.querySelectorAll('[aria-invalid]')).forEach(function (input) { input.removeAttribute('aria-invalid'); });
  }

  // Runs one action of a form: says that it is under way, then what came of it.  Buttons are not disabled meanwhile
  // (that would take the focus from them); a second press is ignored instead.
  async function act(form, title, send, otherwise, again) {
    if (form.dataset.busy) return null;
    form.dataset.busy = 'yes';
    clearError(form);
    outcome.failed = [];
    outcome.again = outcome.undo = null;
    openOutcome(title + '\u2026', [], 'working');
    const label = newLabel();
    const stop = watchProgress(title, label);
    try {
      const reply = await send(label);
      showResults(title, reply, reply.message || otherwise, again);
      return reply;
    } catch (error) {
      if (form === els.outcome) openOutcome(title, [], 'failed'); else setHidden(els.outcome, true);
      if (error.status === 401 || error.status === 403) store.denied = true;
      showError(form, error.message);
      return null;
    } finally {
      stop();
      delete form.dataset.busy;
      refreshNow();
    }
  }

  // ---- controls: one node at once; several only after a look at what will change

  async function apply(form, path, body, more) {
    const ids = targetIds();
    if (form.dataset.busy || !ids.length) return null;
    form.dataset.busy = 'yes';
    let chosen = ids;
    clearError(form);
    try {
      if (ids.length > 1 || more) chosen = await preview(ids, path, body, more);
    } catch (error) {
      showError(form, error.message);
      return null;
    } finally {
      delete form.dataset.busy;
    }
    return chosen ? send(form, path, body, chosen) : null;
  }

  function send(form, path, body, ids) {
    return act(form, titleOf(path, body) + onNodes(ids), function (label) {
      return request('POST', path, Object.assign({nodes: ids, label: label}, body));
    }, undefined, function (failed) { return send(form, path, body, failed); });
  }

  function titleOf(path, body) {
    if (path === 'api/cpus') return body.cpus === 'all' ? 'Set all CPUs' : 'Set CPUs to ' + asCount(body.cpus);
    if (path === 'api/clients') return 'Set clients to ' + asCount(body.clients);
    const word = body.control.charAt(0).toUpperCase() + body.control.slice(1);
    return body.time === null ? 'Clear ' + word : 'Set ' + word + ' to ' + body.time;
  }

  // What a value that a control sets is called.
  function asSetting(path, value) {
    if (path === 'api/cpus') return plural(value, 'CPU');
    if (path === 'api/clients') return value < 0 ? 'clients without limit' : plural(value, 'client');
    return value === null ? 'not set' : isNumber(value) ? asMoment(value) : value;
  }

  // Shows what will change, and where nothing will; resolves to the ids that shall, or null.
  async function preview(ids, path, body, more) {
    const plan = await request('POST', path, Object.assign({nodes: ids, preview: true}, body));
    const lines = plan.results.map(function (result) {
      if (!result.ok) return {id: result.id, kind: 'skipped: ' + result.message, mark: 'failed', message: ''};
      if (result.same) return {id: result.id, kind: 'as it is: ' + asSetting(path, result.before), mark: 'done', message: ''};
      const from = asSetting(path, result.before);
      return {id: result.id, kind: 'from ' + from + ' to ' + asSetting(path, result.after), mark: 'plan', ok: true, message: ''};
    });
    const chosen = lines.filter(function (line) { return line.ok; }).map(function (line) { return line.id; });
    const groups = groupsOf(lines).sort(function (a, b) { return Boolean(b[1][0].ok) - Boolean(a[1][0].ok) || b[1].length - a[1].length; });
    const agreed = await ask(Object.assign({
      title: titleOf(path, body) + (ids.length === 1 ? ' on ' + ids[0] : ''),
      text: !chosen.length ? 'Nothing will change.' : asCount(chosen.length) + ' of ' + plural(ids.length, 'node') + ' will change.',
      yes: 'Apply to ' + plural(chosen.length, 'node'),
      quiet: true,
    }, more && more(chosen.length), {groups: groups, none: !chosen.length}));
    return agreed && chosen.length ? chosen : null;
  }

  // ---- service times

  function readTime() {
    const text = els['service-time'].value.trim();
    const match = /^(\d{1,2}):(\d{2})$/.exec(text);
    if (!match || Number(match[1]) > 23 || Number(match[2]) > 59) return null;
    return match[1].padStart(2, '0') + ':' + match[2];
  }

  function setServiceTyped() {
    const time = readTime();
    if (time) return setService(time);
    clearError(els['service-form']);
    return showError(els['service-form'], 'Give a time as HH:MM, from 00:00 to 23:59.', els['service-time']);
  }

  async function setService(time) {
    const control = els['service-control'].value;
    const more = control === 'end' && time !== null ? function () { return endWarning(time); } : null;
    const reply = await apply(els['service-form'], 'api/service_time', {control: control, time: time}, more);
    if (reply) els['service-time'].value = '';
  }

  function endWarning(time) {
    const chosen = targetRecords();
    const recs = chosen.filter(function (rec) { return rec.node.controllable; });
    const others = chosen.length - recs.length;
    const busy = recs.reduce(function (sum, rec) { return sum + (rec.node.busy || 0); }, 0);
    const when = time === 'now' ? 'now' : 'at ' + time + ', by each node\u2019s own clock,';
    const it = recs.length === 1 ? 'this node' : 'these nodes';
    return {
      quiet: false,
      title: 'End running jobs ' + (time === 'now' ? 'now' : 'at ' + time) + '?',
      text: plural(recs.length, 'node') + ' will end all running jobs ' + when + ' and take no more. Their work so far is lost. dispynode itself ends, too, and has to be started again there. ' +
        (time === 'now' ? '' : 'Where that time has passed today, it counts at once. ') +
        (others ? plural(others, 'selected node') + ' cannot be controlled. ' : '') +
        (busy ? plural(busy, 'job') + ' ran on ' + it + ' at the last count.' : 'No job ran on ' + it + ' at the last count.'),
      yes: time === 'now' ? 'End jobs' : 'Set End',
    };
  }

  // ---- CPUs and clients

  function readInteger(input) {
    const text = input.value.trim().replace(MINUS, '-');
    return /^[+-]?\d{1,6}$/.test(text) ? Number(text) : null;
  }

  function setCpus(cpus) {
    const form = els['cpus-form'];
    clearError(form);
    if (cpus === null) return showError(form, 'Give a whole number of CPUs, such as 4 or \u22122.', els.cpus);
    return apply(form, 'api/cpus', {cpus: cpus});
  }

  function setClients() {
    const form = els['clients-form'];
    const clients = readInteger(els.clients);
    clearError(form);
    if (clients === null || clients < -1) return showError(form, 'Give a whole number of clients, 0 for none, or \u22121 for no limit.', els.clients);
    return apply(form, 'api/clients', {clients: clients});
  }

  // ---- drain

  async function drain() {
    const ids = targetIds();
    const then = els['drain-then'].value;
    if (!ids.length || els['drain-form'].dataset.busy) return;
    if (then === 'end' && !await ask({
      title: 'Drain and end ' + nodesText(ids) + '?',
      text: (ids.length === 1 ? 'It takes' : 'They take') + ' no new jobs from now on; running ones go on to their end. Once a node runs no job any more, dispynode ends there, and somebody has to start it again by hand.',
      yes: 'Drain and end',
    })) return;
    drainNodes(ids, then);
  }

  function drainNodes(ids, then) {
    return act(els['drain-form'], 'Drain ' + nodesText(ids), function (label) {
      return request('POST', 'api/drain', {nodes: ids, then: then, label: label});
    }, undefined, function (failed) { return drainNodes(failed, then); });
  }

  async function cancelDrain() {
    const ids = drainedTargets();
    if (!ids.length) return;
    await act(els['cancel-form'], 'Cancel drain' + onNodes(ids), function (label) {
      return request('POST', 'api/cancel_drain', {nodes: ids, label: label});
    });
    keepFocus(els['cancel-form']);
  }

  // ---- drift

  // Times set here that end dispynode at once where they have passed.
  function hasEnd(node) {
    const end = node.wanted && node.wanted.service_end;
    return Boolean(end && end.time);
  }

  // Several nodes, or one with an End, only after a look at what will be set again.
  async function reapply(form, recs) {
    if (!recs.length || form.dataset.busy) return;
    const ends = recs.filter(function (rec) { return hasEnd(rec.node); }).length;
    const ids = recs.map(function (rec) { return rec.id; });
    const lines = recs.map(function (rec) { return {id: rec.id, kind: 'drifted. ' + rec.node.drift.join(' '), mark: 'plan', message: ''}; });
    if ((ids.length > 1 || ends) && !await ask({
      title: 'Reapply what was set' + onNodes(ids) + '?',
      text: 'Everything that was set here is set again.' + (!ends ? '' : ' ' + (ids.length === 1 ? 'An End time' : 'On ' + plural(ends, 'node') + ' an End time') +
        ' is among it: where that has passed today, running jobs are ended at once, and dispynode itself; it has to be started again there.'),
      yes: 'Reapply' + onNodes(ids),
      quiet: !ends,
      groups: groupsOf(lines),
    })) return;
    reapplyNodes(form, ids);
  }

  async function reapplyNodes(form, ids) {
    await act(form, 'Reapply' + onNodes(ids), function (label) {
      return request('POST', 'api/reapply', {nodes: ids, label: label});
    }, undefined, function (failed) { return reapplyNodes(form, failed); });
    keepFocus(form);
  }

  async function accept(form, recs) {
    const ids = recs.map(function (rec) { return rec.id; });
    if (!ids.length || form.dataset.busy) return;
    if (ids.length > 1 && !await ask({
      title: 'Accept ' + plural(ids.length, 'node') + ' as they are?',
      text: 'What was set here is forgotten for them; nothing changes on the nodes.',
      yes: 'Accept ' + plural(ids.length, 'node'),
      quiet: true,
    })) return;
    await act(form, 'Accept ' + (ids.length === 1 ? ids[0] + ' as it is' : plural(ids.length, 'node') + ' as they are'), function () {
      return request('POST', 'api/accept', {nodes: ids});
    });
    keepFocus(form);
  }

  // A form that goes away when its work is done must not take the focus with it.
  function keepFocus(form) {
    if (form.contains(document.activeElement)) els['outcome-summary'].focus({preventScroll: true});
  }

  function currentDrifted() {
    const rec = currentRecord();
    return rec && rec.node.drift ? [rec] : [];
  }

  function shownDrifted() {
    return view.shown.filter(function (rec) { return rec.node.drift; });
  }

  // ---- forget

  async function forget() {
    const ids = targetIds();
    if (!ids.length) return;
    const title = 'Forget ' + nodesText(ids);
    const reply = await act(els['forget-form'], title, function (label) {
      return request('POST', 'api/forget', {nodes: ids, label: label});
    });
    if (!reply) return;
    if (view.name === 'node') go('admin.html' + addressQuery());
    els['outcome-summary'].focus({preventScroll: true});  // the button that was pressed is disabled now
  }

  // ---- polling and finding

  async function setPollInterval() {
    const form = els['poll-form'];
    const seconds = Number(els['poll-interval'].value);
    clearError(form);
    if (!(seconds >= 5)) return showError(form, 'Give an interval of 5 seconds or more.', els['poll-interval']);
    const reply = await act(form, 'Poll interval', function () {
      return request('POST', 'api/poll', {interval: seconds});
    }, 'each node is asked every ' + asDuration(seconds));
    if (reply) intervalTyped = false;
    return undefined;
  }

  function pollNow() {
    const ids = view.name === 'node' ? targetIds() : [];
    const body = ids.length ? {now: true, nodes: ids} : {now: true};
    return act(els['poll-form'], 'Poll now', function () {
      return request('POST', 'api/poll', body);
    }, 'asking ' + (ids.length ? ids[0] : 'all nodes'));
  }

  function scan() {
    return act(els['scan-form'], 'Scan', function () {
      return request('POST', 'api/scan');
    }, 'nodes in reach have been asked; those that answer appear by themselves');
  }

  // The host and port that were typed, or null.
  function readPlace() {
    const form = els['add-form'];
    const host = els['add-host'].value.trim();
    const port = els['add-port'].value.trim();
    clearError(form);
    if (!host) return showError(form, 'Give a host name or an address.', els['add-host']);
    if (port && !(/^\d+$/.test(port) && port >= 1 && port <= 65535)) return showError(form, 'Give a port from 1 to 65535, or leave it empty.', els['add-port']);
    return port ? {host: host, port: Number(port)} : {host: host};
  }

  async function addNode() {
    const form = els['add-form'];
    const where = readPlace();
    if (!where) return undefined;
    const reply = await addPlace(form, where);
    if (reply && (reply.results || []).some(function (result) { return result.ok; })) form.reset();
    return undefined;
  }

  function addPlace(form, where) {
    return act(form, 'Add ' + where.host, function () {
      return request('POST', 'api/nodes', where);
    });
  }

  function addAnnounced(id) {
    const node = store.nodes.get(id);
    if (node && node.node.announces) addPlace(els['add-form'], {host: node.node.announces});
  }

  // ---- diagnosis

  const STEP_TITLES = {name: 'Name', route: 'Route', connect: 'Connection', tls: 'TLS', protocol: 'dispynode', version: 'Release',
    secret: 'Secret', psutil: 'psutil', elsewhere: 'Other places', table: 'Table'};

  function makeStep(step) {
    const item = make('li');
    const words = make('span');
    const mark = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
    item.dataset.state = step.state;
    item.dataset.step = step.step;
    mark.setAttribute('aria-hidden', 'true');
    use.setAttribute('href', '#mark-' + step.state);
    mark.appendChild(use);
    words.appendChild(make('b', (STEP_TITLES[step.step] || step.step) + ', ' + step.state + ':'));
    words.appendChild(document.createTextNode(' ' + step.message));
    item.appendChild(mark);
    item.appendChild(words);
    return item;
  }

  // What was not looked at is left out, as that is what comes after the failure, and so is an address that needs no look-up.
  function drawDiagnosis(parent, reply) {
    const list = make('ul');
    reply.steps.filter(function (step) {
      return step.state !== 'skipped' || !(step.step === 'name' || /^Not looked at/.test(step.message));
    }).forEach(function (step) { list.appendChild(makeStep(step)); });
    const cure = parent.querySelector('.cure');
    parent.insertBefore(list, cure);
    setText(cure, reply.fix ? 'Fix: ' + reply.fix : 'No problem found.');
    cure.scrollIntoView({block: 'nearest'});
  }

  // Empty but for its heading; that and the cure are read by screen readers when they change.
  function openDiagnosis(parent, title) {
    const head = make('div', undefined, 'diagnosis-head');
    const said = make('p', title);
    const cure = make('p', '', 'cure');
    const close = make('button', 'Close', 'quiet');
    parent.textContent = '';
    said.setAttribute('role', 'status');
    cure.setAttribute('role', 'status');
    close.type = 'button';
    close.addEventListener('click', function () { closeDiagnosis(parent); });
    head.appendChild(said);
    head.appendChild(close);
    parent.appendChild(head);
    parent.appendChild(cure);
    setHidden(parent, false);
    return said;
  }

  function closeDiagnosis(parent) {
    if (parent.hidden) return;
    const inside = parent.contains(document.activeElement);
    parent.textContent = '';
    delete parent.dataset.id;
    delete parent.dataset.busy;
    setHidden(parent, true);
    if (inside) (parent === els.diagnosis ? els.diagnose : els['node-why']).focus();
  }

  async function diagnose(parent, where, title) {
    if (parent.dataset.busy) return;
    const turn = newLabel();
    parent.dataset.busy = turn;
    parent.dataset.id = title;
    const said = openDiagnosis(parent, 'Diagnosing ' + title + '\u2026');
    try {
      const reply = await request('POST', 'api/diagnose', where);
      if (parent.dataset.busy !== turn) return;   // it was closed meanwhile
      drawDiagnosis(parent, reply);
      setText(said, title + ': ' + (reply.fix ? 'problem found' : 'no problem found'));
    } catch (error) {
      if (parent.dataset.busy === turn) setText(said, error.message);
    } finally {
      if (parent.dataset.busy === turn) delete parent.dataset.busy;
      refreshNow();
    }
  }

  function diagnoseTyped() {
    const where = readPlace();
    if (where) diagnose(els.diagnosis, where, where.host + (where.port ? ', port ' + where.port : ''));
  }

  function diagnoseNode() {
    const rec = currentRecord();
    if (rec) diagnose(els['node-diagnosis'], {host: rec.node.ip_addr, port: rec.node.port}, rec.id);
  }

  async function setSecret() {
    const form = els['secret-form'];
    const secret = els.secret.value;
    clearError(form);
    if (!secret) return showError(form, 'Give a secret.', els.secret);
    const reply = await act(form, 'Admin secret', function () {
      return request('POST', 'api/secret', {secret: secret});
    }, 'it opened no node; it will be tried on nodes that are found later');
    if (!reply) return undefined;
    form.reset();
    showSecret();
    return undefined;
  }

  // A field of type password would be offered to password managers, which are not asked to keep this.
  function showSecret() {
    const masked = !els['secret-show'].checked;
    els.secret.classList.toggle('masked', masked);
    els.secret.type = masked && !CSS.supports('-webkit-text-security', 'disc') ? 'password' : 'text';
  }

  // ======== Question ========

  // Resolves to true or false; Escape and closing mean no.
  function ask(question) {
    const text = question.title + '\n\n' + question.text;
    if (typeof els.ask.showModal !== 'function') return Promise.resolve(window.confirm(text));
    setText(els['ask-title'], question.title);
    setText(els['ask-text'], question.text);
    setText(els['ask-yes'], question.yes);
    setHidden(els['ask-yes'], Boolean(question.none));
    setText(els['ask-no'], question.none ? 'Close' : 'Cancel');
    els['ask-yes'].classList.toggle('danger', !question.quiet);
    els['ask-yes'].classList.toggle('main', Boolean(question.quiet));
    drawGroups(els['ask-groups'], question.groups || [], false);
    els.ask.returnValue = '';
    els.ask.showModal();
    els[question.quiet && !question.none ? 'ask-yes' : 'ask-no'].focus();
    return new Promise(function (resolve) {
      els.ask.addEventListener('close', function () { resolve(els.ask.returnValue === 'yes'); }, {once: true});
    });
  }

  function showDialog(dialog, focused) {
    if (typeof dialog.showModal === 'function') dialog.showModal(); else dialog.setAttribute('open', '');
    focused.focus({preventScroll: true});
  }

  function closeDialog(dialog) {
    if (typeof dialog.close === 'function') dialog.close(); else dialog.removeAttribute('open');
  }

  // A click beside an open dialog closes it.
  function onBackdrop(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const inside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
    if (event.target === event.currentTarget && !inside) closeDialog(event.currentTarget);
  }

  // ======== Events ========
  // Who asked what, and what happened, newest first.  Asked for only while they are looked at, and so many at a time; what
  // became of each node, when an event is unfolded.

  const events = {limit: LIST_STEP, drawn: new Map()};   // drawn: number -> {li, print}

  const HAPPENED = {
    found: ['was found', 'were found'],
    back: ['answers again', 'answer again'],
    restarted: ['was started again', 'were started again'],
    opened: ['was opened', 'were opened'],
    lost: ['was lost', 'were lost'],
    impersonated: ['shows the sign of another', 'show signs of others'],
    drifted: ['has drifted', 'have drifted'],
    drained: ['is drained', 'are drained'],
  };

  async function askEvents() {
    const limit = events.limit;
    try {
      const reply = await request('GET', 'api/events?changes=0&limit=' + (limit + 1));
      setText(els['events-error'], '');
      drawEvents(reply.events.slice(0, limit));
      setHidden(els['events-more'], reply.events.length <= limit);
      setText(els['events-more'], 'Show ' + asCount(LIST_STEP) + ' more');
      setText(els['events-none'], reply.events.length ? '' : 'Nothing has happened yet.');
    } catch (error) {
      setText(els['events-error'], error.message);
    }
  }

  // Those that are the same stay, unfolded as they are, with the focus that is in them.
  function drawEvents(list) {
    const before = events.drawn;
    const focused = document.activeElement && document.activeElement.closest('#events-list > li');
    events.drawn = new Map(list.map(function (event) {
      const print = JSON.stringify(event);
      const old = before.get(event.number);
      return [event.number, old && old.print === print ? old : {li: makeEvent(event), print: print}];
    }));
    const lis = Array.from(events.drawn.values()).map(function (drawn) { return drawn.li; });
    const kept = new Set(lis);
    Array.from(els['events-list'].children).forEach(function (li) { if (!kept.has(li)) li.remove(); });
    arrange(els['events-list'], lis, kept.has(focused) ? focused : null);
  }

  function asEventTime(time) {
    const date = new Date(time * 1000);
    if (date.toDateString() === new Date().toDateString()) return asClock(date) + ':' + twoDigits(date.getSeconds());
    return new Intl.DateTimeFormat('en-GB', {day: 'numeric', month: 'short'}).format(date) + ', ' + asClock(date);
  }

  // "anna@127.0.0.1", "10.1.2.3 (via 127.0.0.1)"; what nodes did by themselves has nobody.
  function whoOf(event) {
    const by = event.by;
    if (!by) return '';
    return (by.user ? by.user + '@' : '') + by.address + (by.via ? ' (via ' + by.via + ')' : '');
  }

  // The message is that of the last node, where the same happened to several.
  function whatOf(event) {
    const words = HAPPENED[event.kind];
    return words && event.count > 1 ? asCount(event.count) + ' nodes ' + words[1] + '.' : event.message;
  }

  function outcomesOf(event) {
    const counts = event.outcomes || {};
    const kinds = KINDS.concat(Object.keys(counts)).filter(isFirst).filter(function (kind) { return hasOwn(counts, kind); });
    return kinds.map(function (kind) { return asCount(counts[kind]) + ' ' + kind; }).join(', ');
  }

  function makeEvent(event) {
    const li = make('li', undefined, event.kind);
    const time = make('time', asEventTime(event.time));
    const part = make('div', undefined, 'part');
    time.dateTime = new Date(event.time * 1000).toISOString();
    time.title = asMoment(event.time);
    li.dataset.number = event.number;
    part.appendChild(make('div', whatOf(event), 'what'));
    part.appendChild(make('div', whoOf(event), 'who'));
    li.appendChild(time);
    li.appendChild(part);
    if (event.undo) li.appendChild(makeUndo(event));
    if (event.operation || event.count > 1) li.appendChild(makeUnfold(event));
    return li;
  }

  function makeUndo(event) {
    const button = make('button', 'Undo', 'undo');
    button.type = 'button';
    button.setAttribute('aria-label', 'Undo: ' + event.message);
    button.addEventListener('click', async function () {
      closeDialog(els.events);    // what comes of it is told below the table
      await undo(event.operation, event.message);
      els['outcome-summary'].focus({preventScroll: true});
    });
    return button;
  }

  function makeUnfold(event) {
    const details = make('details', undefined, 'groups');
    details.appendChild(make('summary', event.operation ? outcomesOf(event) || plural(event.count, 'node') : plural(event.count, 'node')));
    details.addEventListener('toggle', function () {
      if (!details.open || details.dataset.filled) return;
      details.dataset.filled = 'yes';
      fillEvent(details, event);
    });
    return details;
  }

  async function fillEvent(details, event) {
    if (!event.operation) return fillNodes(details, event);
    const error = details.appendChild(make('p', '', 'error'));
    try {
      const reply = await request('GET', 'api/events?operation=' + event.operation);
      const changes = reply.events.length ? reply.events[0].changes : [];
      error.remove();
      if (!changes.length) details.appendChild(make('p', 'What became of each node is not kept any more.', 'hint'));
      return fillList(details, changes.map(function (change) { return lineOf(event.action, change); }));
    } catch (problem) {
      delete details.dataset.filled;
      details.open = false;
      return setText(els['events-error'], problem.message);
    }
  }

  function fillNodes(details, event) {
    fillList(details, event.nodes.map(function (id) { return {id: id, mark: 'plan', message: ''}; }));
    if (event.count > event.nodes.length) details.appendChild(make('p', 'and ' + plural(event.count - event.nodes.length, 'more node', 'more nodes'), 'hint'));
  }

  // A change as a line: "10.0.0.7:9701: 8 \u2192 4. dispy uses 4 of 8 CPUs."
  function lineOf(action, change) {
    const times = action === 'service_time';
    const known = change.outcome === 'done' && (times || change.before !== null && change.after !== null);
    const said = known ? asChanged(times, change.before) + ' \u2192 ' + asChanged(times, change.after) + '. ' : '';
    return {id: change.id, ok: change.outcome === 'done', message: said + change.message};
  }

  // Of an undo it is not said what was set: numbers of this size are times.
  function asChanged(times, value) {
    if (value === null) return 'not set';
    return times || value > 1e9 ? asMoment(value) : asCount(value);
  }

  function openEvents() {
    if (els.events.open) return;
    events.limit = LIST_STEP;
    showDialog(els.events, els['events-title']);
    askEvents();
  }

  function moreEvents() {
    events.limit += LIST_STEP;
    return askEvents();
  }

  // ======== Keys ========

  const KEYS_OFF = 'dispyadmin-keys-off';   // in the browser's storage, which a browser may not have

  function readKeysOn() {
    try { els['keys-on'].checked = !localStorage.getItem(KEYS_OFF); } catch (error) { els['keys-on'].checked = true; }
  }

  function writeKeysOn() {
    try {
      if (els['keys-on'].checked) localStorage.removeItem(KEYS_OFF); else localStorage.setItem(KEYS_OFF, 'yes');
    } catch (error) { /* then it holds until the page is closed */ }
  }

  function openHelp() {
    showDialog(els.help, els['help-title']);
  }

  function rowOf(id) {
    const rec = store.nodes.get(id);
    return rec && rec.at >= 0 ? rec : null;
  }

  function focusedRecord() {
    const tr = focusedRow();
    return tr && rowOf(tr.dataset.id);
  }

  // From the row with the focus, or the one that had it last; at first, from the first one in view.
  function moveRow(step) {
    const count = view.shown.length;
    if (!count) return;
    const from = focusedRecord() || rowOf(view.cursor);
    const first = view.offsets.length > 1 ? rowAt(els.viewport.scrollTop) : 0;
    focusRecord(view.shown[Math.max(0, Math.min(count - 1, from ? from.at + step : first))]);
  }

  // Rows far from those in view are not drawn yet.
  function focusRecord(rec) {
    if (!rows.has(rec.id)) {
      els.viewport.scrollTop = Math.max(0, view.offsets[rec.at] - els.viewport.clientHeight / 2);
      drawRows();
    }
    const row = rows.get(rec.id);
    if (!row) return;
    view.cursor = rec.id;
    row.link.focus({preventScroll: true});
    row.tr.scrollIntoView({block: 'nearest'});
  }

  function selectFocused() {
    const rec = focusedRecord() || rowOf(view.cursor);
    if (!rec) return;
    setSelected(rec.id, !view.selected.has(rec.id));
    view.anchor = rec.id;
    updateSelection();
  }

  function openFocused() {
    const rec = focusedRecord();
    if (rec) go(nodeUrl(rec.id));
  }

  function closeOrClear() {
    if (!els.outcome.hidden) return closeOutcome();
    if (view.name !== 'cluster') return undefined;
    if (isFiltered()) return clearFilters();
    view.selected.clear();
    return updateSelection();
  }

  // A field that is not shown does not take the focus.
  function focusFilter() {
    els[view.name === 'cluster' ? 'filter' : 'choose-filter'].focus();
  }

  const KEYS = {
    '?': openHelp,
    '/': focusFilter,
    e: openEvents,
    n: pollNow,
    Escape: closeOrClear,
  };
  const TABLE_KEYS = {
    a: function () { els['select-all'].click(); },
    g: function () { els.group.focus(); },
    j: function () { moveRow(1); },
    k: function () { moveRow(-1); },
    x: selectFocused,
  };
  // Only with the focus in the table: elsewhere they scroll the page, and Enter presses buttons.
  const ROW_KEYS = {
    ArrowDown: TABLE_KEYS.j,
    ArrowUp: TABLE_KEYS.k,
    Enter: openFocused,
  };

  function actionOf(event) {
    const on = els['keys-on'].checked;
    const target = event.target.nodeType === 1 ? event.target : document.body;
    const table = view.name === 'cluster' && !els.viewport.hidden;
    if (event.key === 'Enter' && target.matches('a, button')) return null;
    if (event.key === 'Enter' && target === els.filter) return function () { if (view.shown.length) focusRecord(view.shown[0]); };
    if (target.matches('textarea, select, input:not([type="checkbox"])') || target.isContentEditable) return null;
    if (table && hasOwn(ROW_KEYS, event.key) && els.viewport.contains(target)) return ROW_KEYS[event.key];
    if (!on && event.key.length === 1) return null;
    if (table && hasOwn(TABLE_KEYS, event.key)) return TABLE_KEYS[event.key];
    return hasOwn(KEYS, event.key) ? KEYS[event.key] : null;
  }

  // Dialogs have their own keys, and so has the browser.
  function onKey(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (document.querySelector('dialog[open]')) return;
    const action = actionOf(event);
    if (!action) return;
    event.preventDefault();
    action();
  }

  // ======== Spreadsheet ========
  // What the table shows, in its order, as CSV (RFC 4180); numbers and times in plain units.

  const CSV_COLUMNS = [
    ['id', function (node) { return node.id; }],
    ['name', function (node) { return node.name; }],
    ['state', function (node) { return node.state; }],
    ['controllable', function (node) { return node.controllable ? 'yes' : 'no'; }],
    ['says', function (node) { return whyOf(node); }],
    ['groups', function (node) { return node.groups.join(' '); }],
    ['cpus', function (node) { return node.cpus; }],
    ['machine_cpus', function (node) { return node.max_cpus; }],
    ['busy', function (node) { return node.busy; }],
    ['available_cpu_percent', function (node) { return available(node, 'cpu'); }],
    ['available_memory_bytes', function (node) { return available(node, 'memory'); }],
    ['available_swap_percent', function (node) { return available(node, 'swap'); }],
    ['available_disk_bytes', function (node) { return available(node, 'disk'); }],
    ['jobs_done', function (node) { return node.jobs_done; }],
    ['cpu_time_seconds', function (node) { return node.cpu_time; }],
    ['clients_done', function (node) { return node.clients_done; }],
    ['clients_to_serve', function (node) { return node.serve; }],
    ['client', function (node) { return node.scheduler_ip; }],
    ['service_start', function (node) { return asIso(node.service_start); }],
    ['service_stop', function (node) { return asIso(node.service_stop); }],
    ['service_end', function (node) { return asIso(node.service_end); }],
    ['first_seen', function (node) { return asIso(node.first_seen); }],
    ['last_update', function (node) { return asIso(node.update_time); }],
    ['addresses', function (node) { return (node.addresses || []).join(' '); }],
    ['version', function (node) { return node.version; }],
  ];

  // A time that no calendar has is left out.
  function asIso(time) {
    return isNumber(time) && Math.abs(time) < 8e12 ? new Date(time * 1000).toISOString().slice(0, 19) + 'Z' : null;
  }

  // What a stranger named so would be run by a spreadsheet: behind an apostrophe it is text.
  function asField(value) {
    if (value === null || value === undefined) return '';
    if (typeof value === 'number') return String(value);
    const text = /^[=+\-@\t\r\n]/.test(value) ? "'" + value : String(value);
    return /[",\r\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
  }

  function asRow(node) {
    return CSV_COLUMNS.map(function (column) { return asField(column[1](node)); }).join(',') + '\r\n';
  }

  async function saveCsv() {
    const shown = view.shown.map(function (rec) { return rec.node; });
    const parts = ['\uFEFF' + CSV_COLUMNS.map(function (column) { return column[0]; }).join(',') + '\r\n'];   // the mark tells spreadsheets that it is UTF-8
    for (let at = 0; at < shown.length; at += CSV_STEP) {
      parts.push(shown.slice(at, at + CSV_STEP).map(asRow).join(''));
      await pause();
    }
    const link = make('a');
    link.href = URL.createObjectURL(new Blob(parts, {type: 'text/csv;charset=utf-8'}));
    link.download = 'nodes-' + new Date().toISOString().slice(0, 16).replace(/[T:]/g, '-') + '.csv';
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, PATIENCE * 1000);
  }

  // ======== Views ========

  function readLocation() {
    const single = /admin_node\.html$/.test(location.pathname);
    view.name = single ? 'node' : 'cluster';
    view.host = single ? new URLSearchParams(location.search).get('host') || '' : '';
    if (!single) readQuery(new URLSearchParams(location.search));
  }

  // What the table shows is in the address, so that it can be kept and sent.
  function readQuery(params) {
    const state = params.get('state');
    els.filter.value = params.get('filter') || '';
    view.words = wordsOf(els.filter.value);
    view.state = STATES.concat('drifted').indexOf(state) >= 0 ? state : '';
    view.group = params.get('group') || '';
    view.sort = COLUMN.has(params.get('sort')) ? params.get('sort') : 'address';
    view.down = params.get('direction') === 'descending';
  }

  // Made of what is shown alone: whatever else came with the address, a token above all, is not in it.
  function addressQuery() {
    const params = new URLSearchParams();
    const put = function (name, value) { if (value) params.set(name, value); };
    put('filter', els.filter.value.trim());
    put('state', view.state);
    put('group', view.group);
    put('sort', view.sort === 'address' ? '' : view.sort);
    put('direction', view.down ? 'descending' : '');
    const text = params.toString();
    return text ? '?' + text : '';
  }

  let keeping = 0;
  function keepAddressSoon() {
    clearTimeout(keeping);
    keeping = setTimeout(keepAddress, ADDRESS_PAUSE * 1000);
  }

  function keepAddress() {
    clearTimeout(keeping);
    if (view.name !== 'cluster') return;
    const query = addressQuery();
    Array.from(document.querySelectorAll('a[href^="admin.html"]')).forEach(function (link) { setAttr(link, 'href', 'admin.html' + query); });
    if (location.search === query) return;
    history.replaceState(null, '', location.pathname + query + location.hash);
    place = location.pathname + location.search;
  }

  function updateViews() {
    const rec = currentRecord();
    const cluster = view.name === 'cluster';
    setHidden(els.cluster, !cluster);
    setHidden(els.totals, !cluster);
    setHidden(els.node, cluster || !rec);
    setHidden(els.chooser, cluster || Boolean(rec));
    setAttr(els['nav-cluster'], 'aria-current', cluster ? 'page' : null);
    setAttr(els['nav-node'], 'aria-current', cluster ? null : 'page');
    setAttr(document.body, 'class', 'view-' + view.name + (rec ? ' has-node' : ''));
    const lost = store.totals && store.totals.unreachable;
    const title = (lost ? '(' + asCount(lost) + ' lost) ' : '') + (cluster ? 'Admin Cluster(s)' : rec ? rec.id : 'Admin Node') + ' \u00b7 dispyadmin';
    if (document.title !== title) document.title = title;
  }

  function update() {
    const rec = currentRecord();
    updateViews();
    if (view.name === 'cluster') updateCluster();
    else if (rec) updateNode(rec.node);
    else updateChooser();
    updateTarget();
    updateInterval();
    updateFreshness();
    updateBanner();
    updateHistory();
  }

  function shownTitle() {
    if (view.name === 'cluster') return els['cluster-title'];
    return currentRecord() ? els['node-title'] : els['chooser-title'];
  }

  let place = '';                 // the address shown, without its fragment
  function arrive() {
    place = location.pathname + location.search;
    readLocation();
    update();
    if (view.name === 'cluster') {
      els.viewport.scrollTop = view.scroll;
      drawRows();
    } else {
      window.scrollTo(0, 0);
    }
    shownTitle().focus({preventScroll: true});
  }

  function leave() {
    if (view.name === 'cluster') view.scroll = els.viewport.scrollTop;
  }

  function go(url) {
    keepAddress();
    leave();
    history.pushState(null, '', url);
    arrive();
  }

  // A jump within the page (the skip link) is no other view.
  function onHistory() {
    if (location.pathname + location.search === place) return;
    clearTimeout(keeping);        // the address is another place's by now
    leave();
    arrive();
  }

  // Links are real; only the plain click stays in this page.
  function onLink(event) {
    const link = event.target.closest('a[href^="admin"]');
    if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    keepAddress();                // of links to the table, too
    go(link.getAttribute('href'));
  }

  // ======== Refresh ========

  let timer = 0;
  let asking = false;
  let again = false;

  function updateFreshness() {
    if (!store.answered) return;
    const every = store.pollInterval ? ' \u00b7 nodes polled every ' + asDuration(store.pollInterval) : '';
    setText(els.freshness, (store.lost ? 'last answer ' : 'as of ') + asClock(store.answered) + ':' + twoDigits(store.answered.getSeconds()) + every);
  }

  function bannerText() {
    if (store.denied) return 'This page needs a token. Open the link that dispyadmin printed when it started; it ends in ?token= and the token.';
    if (!store.lost) return '';
    if (!store.answered) return 'No answer from dispyadmin; trying again.';
    return 'No answer from dispyadmin since ' + asClock(store.answered) + ':' + twoDigits(store.answered.getSeconds()) + '; trying again.';
  }

  function updateBanner() {
    const text = bannerText();
    setHidden(els.banner, !text);
    setText(els.banner, text);
  }

  function period() {
    if (document.hidden) return PERIOD_HIDDEN;
    if (store.lost || store.denied) return PERIOD_LOST;
    return Math.min(PERIOD[1], Math.max(PERIOD[0], (store.pollInterval || 0) / 2));
  }

  async function refreshOnce() {
    const since = store.sequence === null ? '' : '?since=' + store.sequence;
    try {
      const text = await withPatience(request('GET', 'api/nodes' + since, null, asText));
      await pause();
      await takeReply(text);
      await pause();
      store.answered = new Date();
      store.lost = store.denied = false;
    } catch (error) {
      if (error.status === undefined) throw error;
      store.denied = error.status === 401 || error.status === 403;
      store.lost = !store.denied;
    }
  }

  // The next request is set after the reply, so that a slow server is never asked twice at once.
  async function refresh() {
    asking = true;
    clearTimeout(timer);
    try {
      await refreshOnce();
      update();
      if (els.events.open) askEvents();
      if (!store.about || !store.nodes.size) askAbout();
    } finally {
      asking = false;
      timer = setTimeout(refresh, again ? 0 : period() * 1000);
      again = false;
    }
  }

  function refreshNow() {
    if (asking) again = true; else refresh();
  }

  function onPrint(event) {
    onPaper = event.type === 'beforeprint';
    drawRows();
  }

  function onVisibility() {
    if (!document.hidden) refreshNow();
  }

  // ======== Start ========

  function on(id, event, handler) {
    els[id].addEventListener(event, handler);
  }

  function onSubmit(id, handler) {
    on(id, 'submit', function (event) {
      event.preventDefault();
      handler();
    });
  }

  function wireTable() {
    on('viewport', 'scroll', drawSoon);
    on('filter', 'input', onFilter);
    on('group', 'change', onGroup);
    on('csv', 'click', saveCsv);
    onSubmit('drifted-form', function () { reapply(els['drifted-form'], shownDrifted()); });
    on('accept-all', 'click', function () { accept(els['drifted-form'], shownDrifted()); });
    on('filter-clear', 'click', showAll);
    on('select-all', 'change', onSelectAll);
    on('rows', 'click', function (event) {
      if (event.target.type === 'checkbox') onSelectClick(event);
      else if (event.target.classList.contains('add')) addAnnounced(event.target.closest('tr').dataset.id);
    });
    on('totals', 'click', function (event) {
      const button = event.target.closest('button');
      if (button) showState(button.dataset.state);
    });
    on('nodes', 'click', function (event) {
      const th = event.target.closest('th[data-sort]');
      if (th && event.target.closest('button')) onSortHeader(th.dataset.sort);
    });
    on('sort-by', 'change', function () { sortBy(els['sort-by'].value, Boolean(COLUMN.get(els['sort-by'].value).down)); });
    on('sort-direction', 'click', function () { sortBy(view.sort, !view.down); });
    COLUMNS.forEach(function (column) {
      const option = make('option', column.title);
      option.value = column.key;
      els['sort-by'].appendChild(option);
    });
  }

  function wireControls() {
    onSubmit('service-form', setServiceTyped);
    on('service-now', 'click', function () { setService('now'); });
    on('service-clear', 'click', function () { setService(null); });
    on('service-control', 'change', updateServiceHint);
    onSubmit('cpus-form', function () { setCpus(readInteger(els.cpus)); });
    on('cpus-all', 'click', function () { setCpus('all'); });
    onSubmit('clients-form', setClients);
    onSubmit('drain-form', drain);
    onSubmit('cancel-form', cancelDrain);
    onSubmit('drift-form', function () { reapply(els['drift-form'], currentDrifted()); });
    on('accept', 'click', function () { accept(els['drift-form'], currentDrifted()); });
    onSubmit('forget-form', forget);
    onSubmit('poll-form', setPollInterval);
    on('poll-now', 'click', pollNow);
    on('poll-interval', 'input', function () { intervalTyped = els['poll-interval'].value !== ''; });
    onSubmit('scan-form', scan);
    onSubmit('add-form', addNode);
    on('diagnose', 'click', diagnoseTyped);
    on('node-why', 'click', diagnoseNode);
    on('node-add', 'click', function () { addAnnounced(els['node-title'].textContent); });
    onSubmit('secret-form', setSecret);
    on('secret-show', 'change', showSecret);
    updateServiceHint();
  }

  function wireRest() {
    on('outcome-dismiss', 'click', closeOutcome);
    on('outcome-retry', 'click', retryFailed);
    on('outcome-select', 'click', selectFailed);
    on('outcome-undo', 'click', function () { undo(outcome.undo, outcome.title); });
    on('choose-filter', 'input', updateChooser);
    on('empty-add', 'click', function (event) {
      event.preventDefault();
      els['add-host'].focus();
    });
    on('ask-yes', 'click', function () { els.ask.close('yes'); });
    on('ask-no', 'click', function () { els.ask.close('no'); });
    on('events-button', 'click', openEvents);
    on('events-close', 'click', function () { closeDialog(els.events); });
    on('events-more', 'click', moreEvents);
    on('help-button', 'click', openHelp);
    on('help-close', 'click', function () { closeDialog(els.help); });
    on('keys-on', 'change', writeKeysOn);
    on('events', 'click', onBackdrop);
    on('help', 'click', onBackdrop);
    document.addEventListener('keydown', onKey);
    document.addEventListener('click', onLink);
    document.addEventListener('visibilitychange', onVisibility);
    window.addEventListener('popstate', onHistory);
    window.addEventListener('beforeprint', onPrint);
    window.addEventListener('afterprint', onPrint);
    window.addEventListener('resize', function () {
      sizes = null;
      if (view.name === 'cluster') updateTable();
      updateHistory();
    });
  }

  function start() {
    Array.from(document.querySelectorAll('[id]')).forEach(function (element) { els[element.id] = element; });
    wireTable();
    wireControls();
    wireRest();
    buildFacts();
    buildHistory();
    place = location.pathname + location.search;
    readLocation();
    keepAddress();
    showSecret();
    readKeysOn();
    update();
    refresh();
  }

  start();
}());
'''


# ---------------------------------------------------------------------------------------------------------------------
# HTTP: server, access, routes, one sender
# ---------------------------------------------------------------------------------------------------------------------

JSON, HTML = 'application/json', 'text/html; charset=utf-8'
CHANGING = ('POST', 'DELETE')  # methods that change something, and have a body
HEALTH = '/api/health'         # anybody may ask there
PAGES = ('/', '/admin.html', '/admin_node.html')
# In Accept-Encoding, of a browser that can unpack it (RFC 9110, 12.5.3).
GZIP = re.compile(r'(?i)(?:^|[\s,])(?:x-)?gzip\s*(?:,|\Z|;\s*q=(?:1|0?\.0{0,2}[1-9]))')

# What is sent: text of this kind, with a status and with headers beside those that all answers have.
Reply = collections.namedtuple('Reply', 'body kind status headers')
Reply.__new__.__defaults__ = JSON, 200, {}


class HttpError(Error):
    """A request that is answered with an error status."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


def refuse(reasons):
    """HttpError for the first reason, (whether it holds, status, sentence), that holds; more are not looked at."""
    for holds, status, sentence in reasons:
        if holds:
            raise HttpError(status, sentence)


# --- server: connections, each with a thread ---

class WebServer(SocketWorker):
    """Accepts connections of browsers and scripts, and gives each a thread of its own, up to `places`."""

    name = 'http'

    def __init__(self, admin, settings, places):
        self._sockets = self._open(settings.http_host, settings.http_port)
        super().__init__()
        self.admin, self.tls, self._places = admin, admin.server_tls, places
        self.port = self._sockets[0].getsockname()[1]
        self.loopback = all(is_loopback(peer_address(sock.getsockname())) for sock in self._sockets)
        self.access = Access(settings, self.loopback, self.tls)
        self.connections = set()  # RequestHandlers.  No lock: adding, removing and copying are one step each
        for sock in self._sockets:
            self.selector.register(sock, selectors.EVENT_READ, functools.partial(self._accept, sock))

    @staticmethod
    def _open(host, port):
        """Listening sockets at every address of the host that can be had, all with one port."""
        sockets, problems = [], []
        try:
            addresses = resolve(host)
        except NodeError as error:
            raise StartError('--http_host %s: %s' % (host, error))
        for address in addresses:
            try:
                sockets.append(open_socket(socket.SOCK_STREAM, address, port))
                port = sockets[0].getsockname()[1]
            except (OSError, NodeError) as error:  # NodeError: a name stands for a link-local address
                problems.append(error)
        taken = [problem for problem in problems if getattr(problem, 'errno', None) == errno.EADDRINUSE]
        if sockets and not taken:
            return sockets
        for sock in sockets:
            sock.close()
        raise StartError('--http_host %s, --http_port %d: %s%s' % (
            printable(host), port, system_error((taken or problems)[0]),
            " dispyadmin may run already, or dispy's own web server (dispyscheduler --httpd, dispy.httpd); "
            'give another --http_port.' if taken else ''))

    def url(self, host):
        """The address of the page as a user types it, with the token when it has to be told."""
        if host in ('0.0.0.0', '::'):
            own = [source.address for source in self.admin.announcer.sources]
            host = next((address for address in own if family_of(address) == family_of(host)), 'localhost')
        return '%s://%s:%d/%s' % (
            'https' if self.tls else 'http', '[%s]' % host if ':' in host else host, self.port,
            '?token=' + self.access.token if self.access.tells_token else '')

    # --- its thread ---

    def turn(self):
        self.sleep()

    def _accept(self, sock):
        try:
            connected, sender = sock.accept()
        except BlockingIOError:
            return
        except OSError as error:
            self.report_once('a browser cannot be served. %s' % system_error(error))
            self._drop_idle()  # no descriptors: that gives one back
            self.stopping.wait(0.05)
            return
        connection = RequestHandler(self, connected, sender)
        try:
            if len(self.connections) >= self._places and not self._drop_idle():  # no other thread adds any
                raise RuntimeError('all connections are busy')
            self.connections.add(connection)
            connection.thread.start()
        except RuntimeError as error:  # or there are no more threads
            logger.debug('http connection from %s is not served: %s', sender[0], error)
            self.connections.discard(connection)
            connected.close()

    def _drop_idle(self):
        """Close the connection that has asked for nothing the longest, to make room; False when all are busy."""
        longest = min(list(self.connections), key=operator.attrgetter('idle_since'), default=None)
        if not longest or longest.idle_since == math.inf:
            return False
        self.connections.discard(longest)
        longest.shut()
        return True

    def finish(self):
        deadline, connections = time.monotonic() + END_TIME / 2, list(self.connections)
        for sock in self._sockets:
            sock.close()
        for connection in connections:
            connection.shut()
        for connection in connections:
            connection.thread.join(max(0.0, deadline - time.monotonic()))
        super().finish()


class _TimedReader(socket.SocketIO):
    """Reads requests under one deadline for each, so that a byte a second does not hold a thread."""

    expires, room = 0.0, 0  # monotonic time; bytes that may still come

    def readinto(self, buffer):
        left = self.expires - time.monotonic()
        refuse([(self.room <= 0, 431, 'The headers of the request have more than %d bytes' % MAX_HEAD)])
        if left <= 0:
            raise socket.timeout('request took too long')
        self._sock.settimeout(left)
        size = super().readinto(buffer)
        self.room -= size
        return size


# The only script that stands in the page: it loads the others.
PAGE_LOADER = re.search('<script>(.*?)</script>', PAGE_HTML, re.DOTALL).group(1).encode('utf-8')

# Nothing but this server's own files may be loaded or framed, and nothing is kept by caches.
HEADERS = {
    'Content-Security-Policy':
        "default-src 'none'; script-src 'self' 'sha256-%s'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
        % base64.b64encode(hashlib.sha256(PAGE_LOADER).digest()).decode('ascii'),
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cache-Control': 'no-store',
    'Vary': 'Accept-Encoding',
}


class RequestHandler(http.server.BaseHTTPRequestHandler):
    """One connection, served by a thread of its own until either side closes it."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    server_version, sys_version = 'dispyadmin/' + __version__, ''
    # until a request has been read
    command, requestline, path, place, allowed, headers = None, '', '', '', '', http.client.HTTPMessage()

    def __init__(self, server, sock, sender):
        # Not that of the base class, which would serve here and now.
        self.server, self.admin, self.request, self.client_address = server, server.admin, sock, sender
        self.idle_since = time.monotonic()  # infinite while a request is served
        self.user = functools.lru_cache(1)(lambda: connection_user(self.connection))  # the kernel is asked once
        self.thread = threading.Thread(target=self._run, name='http-%d' % sender[1], daemon=True)

    def shut(self):
        """Make the thread end soon.  Any thread."""
        with contextlib.suppress(OSError):  # it has ended itself
            self.request.shutdown(socket.SHUT_RDWR)

    def _run(self):
        try:
            self.setup()
            self.handle()
        except (OSError, ValueError) as error:
            logger.debug('http connection from %s ends: %s', self.client_address[0], error)
        except Exception as error:
            self.server.report(error)
        finally:
            self.finish()

    def setup(self):
        self.request.settimeout(REQUEST_TIME)
        if self.server.tls:
            self.request.getpeername()  # OSError when it is gone already: wrapping it then would leave it open
            self.request = self.server.tls.wrap_socket(
                self.request, server_side=True, do_handshake_on_connect=False)
            self.request.do_handshake()
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_TimedReader(self.connection, 'rb'))

    def finish(self):
        """Let the browser read its answer: closing with bytes unread would reset the connection at once."""
        self.idle_since = time.monotonic()
        with contextlib.suppress(OSError, ValueError):  # it is gone
            self.request.shutdown(socket.SHUT_WR)
            self.request.settimeout(LINGER_TIME / 2)
            while time.monotonic() < self.idle_since + LINGER_TIME and self.request.recv(1 << 16):
                pass
        self.server.connections.discard(self)
        self.request.close()

    def handle_one_request(self):
        """The first byte may take IDLE_TIME to come; from then on it has REQUEST_TIME, and MAX_HEAD bytes."""
        self._is_body_read, self.raw_requestline, self.idle_since = False, b'', time.monotonic()
        self.rfile.raw.expires, self.rfile.raw.room = self.idle_since + IDLE_TIME, MAX_HEAD
        try:
            self.rfile.peek(1)
            self.rfile.raw.expires = time.monotonic() + REQUEST_TIME
            super().handle_one_request()
        except HttpError as error:
            self.send_error(error.status if self.raw_requestline else 414, str(error))

    def serve(self):
        """Answer one request."""
        self.idle_since = math.inf
        try:
            reply = self._reply()
        except (HttpError, InputError, UnknownNode) as error:
            status = 404 if isinstance(error, UnknownNode) else getattr(error, 'status', 400)
            reply = self._failure(status, str(error))
        except OSError:
            raise  # the browser has gone
        except Exception as error:
            self.server.report(error)
            reply = self._failure(500, UNEXPECTED)
        self._send(reply)

    do_GET = do_HEAD = do_POST = do_DELETE = do_PUT = do_PATCH = do_OPTIONS = serve

    # --- what is asked for ---

    def _reply(self):
        self._read_target()
        if self.place != HEALTH:
            refuse(self.server.access.reasons_to_refuse(self))
        routes = {method: route for route in ROUTES if self.place == '*' or route.fits(self.place)
                  for method in route.methods}
        self.allowed = ', '.join(sorted({'OPTIONS'}.union(routes)))
        if self.command == 'OPTIONS' and routes:  # no other site is allowed any
            return Reply('', status=204, headers={'Allow': self.allowed})
        refuse([(not routes or self.place == '*', 404, 'There is nothing at this address'),
                (self.command not in routes, 405, '%s does not go with this address' % self.command)])
        return routes[self.command].answer(self, self._read_body() if self.command in CHANGING else self.query)

    def _read_target(self):
        """Take apart whom the request is for, and where it goes.

        A proxy may send a whole URL, whose host counts instead of the header's (RFC 9112, 3.2.2), and, for a path
        without its last slash, one slash too many.
        """
        authority, path, query = re.match(r'(?i)(?:https?://([^/?]*))?([^?]*)\??(.*)', self.path).groups()
        hosts = self.headers.get_all('Host', []) if authority is None else [authority]
        self.authority = hosts[0].strip().lower() if len(hosts) == 1 else ''
        self.place = re.sub('^/+', '/', path) or '/'
        self.query = dict(urllib.parse.parse_qsl(query))  # as long as MAX_HEAD allows, at most

    def _read_body(self):
        """The JSON object in the request's body (an empty one when DELETE has none)."""
        kind = self.headers.get('Content-Type', '').partition(';')[0].strip().lower()
        lengths = self.headers.get_all('Content-Length', ['0'] if self.command == 'DELETE' else [])
        # strip() alone takes control characters for space, and int() does not.
        is_number = len(lengths) == 1 and re.match(r'[0-9]{1,12}\Z', lengths[0].strip(' \t'))
        size = int(lengths[0]) if is_number else 0
        refuse([(kind != JSON, 415, 'Content-Type: must be application/json'),
                ('Transfer-Encoding' in self.headers, 411,
                 'Transfer-Encoding: send the body with Content-Length instead'),
                (not lengths, 411, 'Content-Length: is missing'),
                (not is_number, 400, 'Content-Length: must be a number of bytes'),
                (size > MAX_BODY, 413, 'Content-Length: at most %d bytes are taken' % MAX_BODY)])
        self.rfile.raw.room += size
        try:
            data = self.rfile.read(size)
        except socket.timeout:
            raise HttpError(408, 'Content-Length: the body did not arrive in time')
        refuse([(len(data) < size, 400, 'Content-Length: the body is shorter')])
        self._is_body_read = True
        return read_json(data) if data or self.command != 'DELETE' else {}

    def by(self):
        """Who asks (Actor): a proxy's client where one may be in front, else the user where the kernel tells."""
        address, user, via = peer_address(self.client_address), None, None
        if self.server.access.proxy_names:
            with contextlib.suppress(ValueError):  # it tells no address
                client, _ = split_host_port(told_by_proxy(self.headers, ['X-Forwarded-For', 'X-Real-IP'], 'for'))
                address, via = canonical(client).partition('%')[0], address
        elif is_loopback(address) and self.user() is not None:
            user = user_name(self.user())
        return Actor(address, user, via)

    # --- answers ---

    def _failure(self, status, sentence):
        """The Reply that tells an error: a page to who opens one without the token, else JSON."""
        headers = {401: {'WWW-Authenticate': 'Bearer realm="dispyadmin"'}, 405: {'Allow': self.allowed}}
        if status == 401 and self.command in ('GET', 'HEAD') and self.place in PAGES:
            return Reply(DENIED_HTML + sentence, HTML, status, headers[status])
        return Reply(encode_json({'error': sentence}), JSON, status, headers.get(status, {}))

    def send_error(self, code, message=None, explain=None):
        """What the standard library finds wrong with a request is told like all else."""
        self.close_connection = True
        self._send(self._failure(code, printable(message or 'request cannot be read')[:200]))

    def _send(self, reply):
        """The one sender.  Nothing secret is in answers, so packing tells nothing by their length."""
        body, headers = reply.body.encode('utf-8', 'replace'), dict(HEADERS, **reply.headers)
        # Below 1400 bytes, one packet takes it as it is.
        if len(body) > 1400 and GZIP.search(self.headers.get('Accept-Encoding', '')):
            body, headers['Content-Encoding'] = gzip.compress(body, 1), 'gzip'  # slower levels make not much less
        if reply.status != 204:  # which has no content
            headers.update({'Content-Type': reply.kind, 'Content-Length': str(len(body))})
        has_body = 'Content-Length' in self.headers or 'Transfer-Encoding' in self.headers
        if self.close_connection or has_body and not self._is_body_read:  # else its rest would be the next request
            headers['Connection'] = 'close'
        self.connection.settimeout(REQUEST_TIME)
        self.request_version = self.protocol_version  # else an answer to HTTP/0.9 would have no headers
        self.send_response(reply.status)
        for name, value in headers.items():
            self.send_header(name, value)  # which closes the connection where that is told
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def log_message(self, format, *args):
        """At debug level only, and without the query: it may hold the token."""
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug('http %s %s %s', self.by(), self.command, self.path.partition('?')[0][:200])


# --- access: who may ask ---

PROXY_HEADERS = ('Forwarded', 'X-Forwarded-For', 'X-Forwarded-Host', 'X-Forwarded-Proto', 'X-Real-IP', 'Via')

NEEDS_TOKEN = (
    'A token is needed: open the link that dispyadmin printed when it started (it ends in ?token=...), or send '
    'the header "Authorization: Bearer TOKEN". If it printed none, the token is in the file given as '
    '--http_token; without that, the page is for the user who runs dispyadmin and for root alone.')


class Access:
    """Who may ask: whoever has the token, and on loopback, where the kernel tells it, our own user and root.

    With a name for a proxy (--http_name), each connection may be the proxy's: its headers count then, whoever the
    kernel says connects.
    """

    def __init__(self, settings, is_loopback_only, has_tls):
        self.proxy_names = {name.lower() for name in settings.http_names}
        self._names = {'localhost', settings.http_host.lower().strip('[]').rstrip('.')} | self.proxy_names
        self._is_loopback_only, self._has_tls = is_loopback_only, has_tls
        self._trusts_kernel = (is_loopback_only and not self.proxy_names and os.path.exists('/proc/self/net/tcp')
                               and hasattr(os, 'geteuid'))
        self.token = settings.http_token or secrets.token_urlsafe(24)
        self.tells_token = not (settings.http_token or self._trusts_kernel and os.geteuid() != overflow_user())
        # Of the token, as cookies do not tell ports apart: two of us, each behind a tunnel, may be one localhost.
        self._cookie = 'dispyadmin-%.12s' % hashlib.sha256(b'dispyadmin cookie ' + self.token.encode()).hexdigest()

    def reasons_to_refuse(self, request):
        """What may stand against a request, as refuse() takes it."""
        # Else a foreign site whose name leads here could read everything.
        host, here = host_of(request.authority), peer_address(request.connection.getsockname())
        own = (host in self._names or is_address(host) and is_loopback(host)
               or not self._is_loopback_only and host.partition('%')[0] == here.partition('%')[0])
        yield not own, 421, (
            'Host: this server is not %s; if a proxy or a name of your own leads here, start dispyadmin with '
            '--http_name NAME' % (printable(request.authority)[:80] or 'named'))
        is_login = request.command in ('GET', 'HEAD') and request.place in PAGES and 'token' in request.query
        yield is_login and not self.is_token(request.query['token']), 401, (
            'token: this is not the token of the dispyadmin that runs now. ' + NEEDS_TOKEN)
        shown = (re.findall(r'(?is)\Abearer (.*)', request.headers.get('Authorization', ''))
                 + re.findall(r'(?:^|;\s*)%s=([^;]*)' % self._cookie, request.headers.get('Cookie', '')))
        has_token = is_login or any(self.is_token(text.strip()) for text in shown)
        yield not (has_token or self._trusts(request)), 401, NEEDS_TOKEN
        # A browser says from which page a request comes: it must be our own, or a proxy's that leads here.
        origin = request.headers.get('Origin', 'http://' + request.authority)
        scheme, _, authority = origin.lower().partition('://')
        own = authority == request.authority or host_of(authority) in self.proxy_names
        yield request.command in CHANGING and not (own and scheme in ('http', 'https')), 403, (
            'Origin: requests from pages of %s are not allowed' % (printable(origin)[:80] or 'nowhere'))

    def is_token(self, text):
        """Whether this is the token, in a time that does not tell how much of it is right."""
        return hmac.compare_digest(text.encode('utf-8', 'replace'), self.token.encode('utf-8'))

    def _trusts(self, request):
        return (self._trusts_kernel and not any(name in request.headers for name in PROXY_HEADERS)
                and request.user() in (0, os.geteuid()))

    def set_cookie(self, headers):
        """The header that leaves the token with a browser: for TLS alone where the browser uses it.  That a proxy
        tells: a client that makes it up spoils its own login alone."""
        scheme = told_by_proxy(headers, ['X-Forwarded-Proto'], 'proto') if self.proxy_names else ''
        secure = '; Secure' if self._has_tls or scheme.lower() == 'https' else ''
        return '%s=%s; HttpOnly; SameSite=Strict%s' % (self._cookie, self.token, secure)


def host_of(authority):
    """The host of HOST, HOST:PORT or [ADDRESS]:PORT, without a last dot, or its canonical address; else ''."""
    match = re.match(r'(?:\[([^\[\]]*)\]|([^:/\[\]]*))(?::[0-9]*)?\Z', authority)
    host = (match.group(1) or match.group(2) or '').rstrip('.') if match else ''
    return canonical(host) if is_address(host) else host


# The last element of Forwarded.  What stands in quotation marks, as a client's Host may, is one value.
_PAIR = r'[a-z]+=(?:"[^"]*"|[^\s",;]*)'
_LAST_ELEMENT = re.compile(r'(?:.*,)?[ \t]*(%s(?:[ \t]*;[ \t]*%s)*)[ \t]*\Z' % (_PAIR, _PAIR), re.IGNORECASE)


def told_by_proxy(headers, names, key):
    """What a proxy tells of its client: the last element of the first of these headers that is there, else this
    key of Forwarded (RFC 7239); '' for nothing, or several.  Earlier elements the client may have made up."""
    for name in names:
        if name in headers:
            return headers.get_all(name)[-1].rpartition(',')[2].strip(' \t"')
    match = _LAST_ELEMENT.match(headers.get_all('Forwarded', [''])[-1])
    pairs = [pair.partition('=') for pair in re.findall('(?i)' + _PAIR, match.group(1))] if match else []
    values = [value.strip('"') for name, _, value in pairs if name.lower() == key]
    return values[0] if len(values) == 1 else ''


def overflow_user():
    """The id that stands for users of other namespaces, and so for nobody: proc_sys_kernel(5)."""
    with contextlib.suppress(OSError, ValueError), open('/proc/sys/kernel/overflowuid') as file:
        return int(file.read())
    return 65534


def connection_user(sock):
    """The id of the user whose is the other end of a loopback connection; None when the kernel does not tell.

    Source: /proc/net/tcp, see proc(5), under the name that is left of it in a service with ProcSubset=pid.
    """
    there, here = sock.getpeername()[:2], sock.getsockname()[:2]
    # a client may speak IPv4 through a socket of either family
    for name, prefix in ('tcp', ''), ('tcp6', '::ffff:' if sock.family == socket.AF_INET else ''):
        wanted = [_proc_address(prefix + address, port) for address, port in (there, here)] + [b'01']  # connected
        with contextlib.suppress(OSError, ValueError, IndexError), open('/proc/self/net/' + name, 'rb') as table:
            users = [int(fields[7]) for fields in map(bytes.split, table) if fields[1:4] == wanted]
            if users:
                return users[0] if users[0] != overflow_user() else None
    return None


def _proc_address(address, port):
    """An address as /proc/net/tcp writes it: words of 32 bits in the machine's own byte order, in hex."""
    words = memoryview(socket.inet_pton(family_of(address), address.partition('%')[0])).cast('I')
    return ('%s:%04X' % (''.join('%08X' % word for word in words), port)).encode('ascii')


def user_name(user):
    """The name of a user with this id, or the id."""
    try:
        return pwd.getpwuid(user).pw_name
    except (KeyError, AttributeError):
        return str(user)


# --- routes ---

def read_json(data):
    """A JSON object from the browser; anything else is refused."""
    try:
        # Longer numbers are more than any field may be; int() would take seconds for a million digits.
        value = json.loads(data.decode('utf-8'), parse_int=lambda text: int(text) if len(text) <= 20 else math.inf)
    except (ValueError, RecursionError):
        raise InputError('body: must be JSON in UTF-8')
    refuse([(not isinstance(value, dict), 400, 'body: must be a JSON object')])
    return value


# What a field of a request must be, and whether a value is; all other fields are checked where they are used.
CHECKS = {
    'host': ('a host name or an IP address', lambda host: isinstance(host, str)),
    'port': ('a whole number from 1 to 65535', lambda port: type(port) is int and 0 < port < 65536),
    'nodes': ('a list of 1 to %d node ids' % MAX_BODY_NODES, lambda ids: (
        isinstance(ids, list) and 0 < len(ids) <= MAX_BODY_NODES and all(isinstance(each, str) for each in ids))),
    'preview': ('true or false', lambda flag: type(flag) is bool),
    'label': ('1 to 64 printable characters', lambda label: (
        isinstance(label, str) and re.match(r'[\x21-\x7e]{1,64}\Z', label))),
    'note': ('a text of at most %d printable characters' % MAX_TEXT, lambda note: (
        isinstance(note, str) and len(note) <= MAX_TEXT and note.isprintable())),
    'then': ('"restore", "end" or "stay"', lambda then: then in THENS),
    'now': ('true', lambda now: now is True),
    **dict.fromkeys(['operation', 'since', 'limit', 'changes'], (  # in an address, all is text
        'a whole number', lambda number: re.match(r'[0-9]{1,16}\Z', str(number)))),
}


class Route:
    """What a request does: `call(request, ID of the path, field=value)`, with the fields of query or body, makes a
    Reply, or what is sent as JSON.  A field that ends in ? may be left out or null.  HEAD goes with GET."""

    def __init__(self, method, path, call, *fields):
        self.methods, self.path, self._call = {method} | ({'HEAD'} if method == 'GET' else set()), path, call
        self.fits = re.compile(re.escape(path).replace('ID', '(.*)') + r'\Z').match
        self._fields = {field.rstrip('?'): field.endswith('?') for field in fields}

    def answer(self, request, given):
        """Check the fields, and call."""
        refuse(self._reasons_to_refuse(request, given))
        ids = [urllib.parse.unquote(part) for part in self.fits(request.place).groups()]
        made = self._call(request, *ids, **{field: given.get(field) for field in self._fields})
        return made if isinstance(made, Reply) else Reply(encode_json(made))

    def _reasons_to_refuse(self, request, given):
        for field in given if request.command in CHANGING else ():
            yield field not in self._fields, 400, (
                '%s: there is no such field in this request' % printable(field)[:80])
        for field, may_lack in self._fields.items():
            value, (what, is_good) = given.get(field), CHECKS.get(field, ('', lambda value: True))
            yield field not in given and not may_lack, 400, '%s: is missing' % field
            yield not (value is None and may_lack or is_good(value)), 400, '%s: must be %s' % (field, what)


def get_page(request, token):
    """The page.  With ?token= the token goes into a cookie, and the browser to the same address without it."""
    if token is None:
        return Reply(PAGE_HTML, HTML)
    rest = urllib.parse.urlencode({field: value for field, value in request.query.items() if field != 'token'})
    # Some clients take an empty query for none, and would come back.
    return Reply('', HTML, 303, {'Set-Cookie': request.server.access.set_cookie(request.headers),
                                 'Location': '?' + (rest or 'login')})


def get_health(request):
    """Whether all goes well, and nothing else."""
    is_well = request.server.is_alive() and request.admin.is_well()
    return Reply(encode_json({'ok': is_well}), status=200 if is_well else 503)


def get_nodes(request, since):
    """The nodes that have changed after this sequence number, or all."""
    admin, snapshot = request.admin, request.admin.table.snapshot(since and int(since))
    head = encode_json({'sequence': snapshot.sequence, 'time': time.time(),
                        'poll_interval': admin.schedule.interval, 'totals': snapshot.totals,
                        'groups': admin.table.group_totals(), 'full': snapshot.full, 'removed': snapshot.removed})
    return Reply('%s,"nodes":[%s]}' % (head[:-1], ','.join(node.json() for node in snapshot.nodes)))


def get_events(request, operation, node, kind, since, limit, changes):
    """The newest, at most so many (limit), each with so many changes; those of one operation whole."""
    events = [event for event in request.admin.journal.events() if event.time >= int(since or 0) and
              (operation is None or event.plan and event.plan.number == int(operation)) and
              node in (None,) + event.nodes and kind in (None, event.kind)]
    most = MAX_CHANGES if operation is not None else min(int(changes or MAX_EVENT_NODES), MAX_EVENT_NODES)
    return {'time': time.time(), 'events': [event.json(most) for event in events[:int(limit or MAX_EVENTS)]]}


def endpoint_of(host, port):
    """(host, port or None) of a request that names a machine."""
    try:
        host, port_too = split_host_port(host)
    except ValueError as error:
        raise InputError('host: %s' % error)
    refuse([(port and port_too and port != port_too, 400, 'port: %s, but the host says %s' % (port, port_too))])
    return host, port or port_too


def poll_nodes(request, interval, now, nodes):
    """Set the poll interval, or poll now."""
    refuse([((interval is None) == (now is None), 400,
             'interval: give either "interval" in seconds or "now": true')])
    if interval is not None:
        request.admin.set_interval(interval, by=request.by())
    return {'poll_interval': request.admin.schedule.interval, 'results': request.admin.poll(nodes) if now else []}


def run_plan(request, plan, preview=False):
    """The answer to a request that changes nodes, or, with `preview`, would."""
    if preview:
        return request.admin.plans.preview(plan)
    results = request.admin.plans.run(plan)
    return {'operation': plan.number, 'undo': plan.can_undo(), 'results': results}


def plan_route(path, make, *fields, needs_nodes=True):
    """The Route of a request that changes `nodes`, or those of `group`: `make(by, **fields)` is the Step of its
    Plan, which `label` finds while it runs.  Where no nodes are needed, those are meant that have drifted."""
    def call(request, nodes, group, preview, label, **values):
        plans, by = request.admin.plans, request.by()
        refuse([(nodes is not None and group is not None, 400, 'group: give either "nodes" or "group"'),
                (nodes is None and group is None and needs_nodes, 400, 'nodes: is missing')])
        if group is not None:
            nodes = request.admin.ids_of_group(group)
        ids = plans.drifted() if nodes is None else nodes
        return run_plan(request, plans.plan(make(by, **values), ids, by, label), preview)
    return Route('POST', path, call, 'nodes?', 'group?', 'preview?', 'label?', *fields)


# For all but HEALTH, Access says who may ask.
ROUTES = [Route('GET', path, get_page, 'token?') for path in PAGES] + [
    Route('GET', '/page.css', lambda request: Reply(PAGE_CSS, 'text/css; charset=utf-8')),
    Route('GET', '/page.js', lambda request: Reply(PAGE_JS, 'text/javascript; charset=utf-8')),
    Route('GET', '/metrics', lambda request: Reply(write_metrics(request.admin), METRICS_KIND)),
    Route('GET', HEALTH, get_health),
    Route('GET', '/api/nodes', get_nodes, 'since?'),
    Route('GET', '/api/nodes/ID', lambda request, node_id: dict(
        request.admin.node(node_id).view, history=request.admin.history.node(node_id))),
    Route('GET', '/api/history', lambda request: request.admin.history.cluster()),
    Route('GET', '/api/events', get_events, 'operation?', 'node?', 'kind?', 'since?', 'limit?', 'changes?'),
    Route('GET', '/api/operations', lambda request: {
        'operations': [plan.summary() for plan in request.admin.journal.plans()[:20]]}),
    Route('GET', '/api/about', lambda request: request.admin.about()),
    Route('POST', '/api/nodes', lambda request, host, port: {
        'results': request.admin.add(*endpoint_of(host, port), by=request.by())}, 'host', 'port?'),
    Route('POST', '/api/diagnose', lambda request, host, port: diagnose(request.admin, *endpoint_of(host, port)),
          'host', 'port?'),
    Route('POST', '/api/secret', lambda request, secret: {
        'results': request.admin.add_secret(secret, by=request.by())}, 'secret'),
    Route('POST', '/api/poll', poll_nodes, 'interval?', 'now?', 'nodes?'),
    Route('POST', '/api/scan', lambda request: {'results': request.admin.scan(request.by()) or []}),
    Route('POST', '/api/undo', lambda request, operation, preview, label: run_plan(
        request, request.admin.plans.undo(operation, request.by(), label), preview),
          'operation', 'preview?', 'label?'),
    Route('DELETE', '/api/nodes/ID', lambda request, node_id: run_plan(
        request, request.admin.plans.plan(ForgetStep(), [request.admin.node(node_id).id], request.by()))),
    plan_route('/api/cpus', lambda by, cpus: SetStep(SetCpus(cpus)), 'cpus'),
    plan_route('/api/service_time', lambda by, control, time: SetStep(SetServiceTime(control, time)),
               'control', 'time'),
    plan_route('/api/clients', lambda by, clients: SetStep(SetClients(clients)), 'clients'),
    plan_route('/api/drain', lambda by, then, note: DrainStep(by, then, note or None), 'then?', 'note?'),
    plan_route('/api/return', lambda by: ReturnStep()),
    plan_route('/api/cancel_drain', lambda by: ReturnStep()),
    plan_route('/api/reapply', lambda by: ReapplyStep(), needs_nodes=False),
    plan_route('/api/accept', lambda by: AcceptStep(), needs_nodes=False),
    plan_route('/api/forget', lambda by: ForgetStep()),
]


# ---------------------------------------------------------------------------------------------------------------------
# Configuration and console
# ---------------------------------------------------------------------------------------------------------------------

# What makes a value of an option's text: ValueError with a sentence for what cannot be.

def _number(low, high, text, make=int, what='a whole number'):
    with contextlib.suppress(ValueError):
        if low <= make(text) <= high:  # NaN is not
            return make(text)
    raise ValueError('"%.80s" is not %s between %d and %d' % (text, what, low, high))


def _one_of(values, text):
    if text.strip().lower() not in values:
        raise ValueError('"%.80s" is none of %s' % (text, ', '.join(values)))
    return values[text.strip().lower()]


def _host(text):
    return check_host(text.strip())


def _http_name(text):
    """A --http_name: browsers leave the interface of a link-local address out, and the last dot in."""
    name = text.strip().rstrip('.')
    if '://' in name or '/' in name or host_of(name) != name and not is_address(name):
        raise ValueError('must be a name alone, without scheme, port, path and brackets')
    return check_host(name, needs_interface=False)


def _group(text):
    name, _, patterns = text.partition('=')
    patterns = [pattern.strip() for pattern in patterns.split(',') if pattern.strip()]
    if not patterns or not re.match(r'[A-Za-z0-9][A-Za-z0-9_.-]{0,39}\Z', name.strip()):
        raise ValueError('"%.80s" is not NAME=PATTERN[,PATTERN...], with a name of letters, digits, - _ and .' % text)
    return Group(name.strip(), patterns)


def _command(text):
    """A command as in a shell, but no shell is run: find_program() takes it apart."""
    if not any(shlex.split(text)[:1]):  # a ValueError of its own where a quotation does not end
        raise ValueError('is empty')
    return _file(text)


def _file(text):
    """A file name.  Python 3.6 spells what is not ASCII as bytes in the C locale."""
    if '\0' in text:
        raise ValueError('has a zero byte')
    return os.fsdecode(text.encode('utf-8', 'surrogateescape'))


def _secret(text):
    """A secret as given: itself, @FILE, or - to be asked for it; read_secret() gets it."""
    if not text:
        raise ValueError('is empty')
    return text


class Literal(str):
    """A secret that stands for itself, whatever it begins with."""


# A list as default means that the option can be given again and again.
Option = collections.namedtuple('Option', 'key metavar parse default help')

_PORT = functools.partial(_number, 0, 65535)
_SECONDS = functools.partial(_number, LEAST_INTERVAL, MOST_INTERVAL, what='a number of seconds',
                             make=lambda text: int(text) if text.strip().isdigit() else float(text))
_FLAG = functools.partial(_one_of, configparser.ConfigParser.BOOLEAN_STATES)
_KIND = functools.partial(_one_of, {kind: kind for kind in EVENT_KINDS})

OPTIONS = (
    Option('secret', 'SECRET', _secret, '',
           'admin secret of the nodes: dispynode\'s --admin_secret. "-" asks for it without showing it, "@FILE" reads the '
           'first line of a file. These two, the environment variable DISPYADMIN_SECRET, the configuration file and the '
           'page are better places than the command line, which every user of this machine sees in the list of processes'),
    Option('hosts', 'HOST', _host, [],
           'name or address of this machine to find and hear nodes at (default: every interface that is up)'),
    Option('nodes', 'HOST[:PORT]', split_host_port, [], 'a node that broadcasts do not reach'),
    Option('http_host', 'HOST', _host, 'localhost',
           'where the page is served; elsewhere than on localhost, which is for this machine alone, a token is needed'),
    Option('http_port', 'PORT', _PORT, HTTP_PORT, 'port of the page; 0: any that is free'),
    Option('http_token', 'FILE', _file, '',
           'file whose first line is the token that browsers need where one is needed (default: a new one at each start)'),
    Option('http_names', 'NAME', _http_name, [],
           'a further name of the page, that of a proxy or tunnel in front; everybody needs the token then'),
    Option('info_port', 'PORT', _PORT, None,
           'port at which nodes announce themselves, UDP and TCP, held all the time (default: %d and, for nodes before '
           'dispy 4.15, %d, UDP, shared with the other programs of dispy on this machine; 0: none, nodes are only asked)'
           % (PORT_PAIRS[0][0], PORT_PAIRS[1][0])),
    Option('reply_port', 'PORT', _PORT, None,
           'TCP port to which nodes answer searches, for a firewall (default: %d, or --info_port where that is given; 0: '
           'any that is free)' % REPLY_PORT),
    Option('node_port', 'PORT', functools.partial(_number, 1, 65535), None,
           'port of the nodes (default: %d and, for nodes before dispy 4.15, %d)' % (PORT_PAIRS[0][1], PORT_PAIRS[1][1])),
    Option('poll_interval', 'SEC', _SECONDS, POLL_INTERVAL, 'seconds between two polls of a node'),
    Option('ping_interval', 'SEC', _SECONDS, PING_INTERVAL, 'seconds between two searches for new nodes'),
    Option('ipv4_udp_multicast', None, _FLAG, False,
           'search by multicast instead of broadcast in IPv4, as dispynode with the same option does'),
    Option('certfile', 'FILE', _file, '',
           'certificate for TLS with nodes and browsers; the file that dispynode has as --certfile'),
    Option('keyfile', 'FILE', _file, '', 'private key for --certfile, unless it is in that file'),
    Option('groups', 'NAME=PATTERN[,PATTERN...]', _group, [],
           'nodes to be looked at together: addresses, networks (10.1.0.0/16), or names with * and ?'),
    Option('state', 'FILE', _file, '',
           'keep what was set, and nodes added or forgotten, in this file over restarts (default: nothing is kept)'),
    Option('keep', None, _FLAG, False,
           'set again what was set here, on nodes that were started again or have other values'),
    Option('on_event', 'COMMAND', _command, '',
           'run this program, without a shell, when nodes are lost, answer again or were started again; its standard '
           'input is what happened, as JSON'),
    Option('events', 'KIND', _KIND, [], 'what --on_event is run for, instead: ' + ', '.join(EVENT_KINDS)),
    Option('debug', None, _FLAG, False, 'log every announcement and request'),
)


def name_of(option):
    """An option's name on the command line and in a configuration file, where the key is a plural."""
    return option.key[:-1] if option.default == [] else option.key


# What an option may be called in a configuration file: by its key, its name, or as in dispy before 4.14 (ip_addrs).
KEYS = {name: option for option in OPTIONS for name in (option.key, name_of(option))}
KEYS['ip_addrs'] = KEYS['hosts']

# The dispyadmin of dispy saves all its options, given or not: there, a port that is dispy's own was not asked for, and a
# secret stands for itself.  We do not write such files, as we save `host`.
UPSTREAM_NAMES = {'secret', 'http_host', 'http_port', 'info_port', 'node_port', 'poll_interval', 'ping_interval', 'certfile',
                  'keyfile', 'ipv4_udp_multicast'}
DISPY_PORTS = {str(port) for port in itertools.chain(*PORT_PAIRS)}


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line."""

    def error(self, message):
        raise UsageError(message)

    def _get_values(self, action, arg_strings):
        # before Python 3.13, --option=-- loses its value
        return '--' if arg_strings == ['--'] else super()._get_values(action, arg_strings)


def build_parser():
    """The command line.  An option that is not given is None."""
    parser = _Parser(prog='dispyadmin', allow_abbrev=sys.version_info < (3, 8),
                     description='Find, watch and control the nodes of a dispy cluster from a web page, by default at '
                     'http://localhost:%d/.' % HTTP_PORT)
    parser.add_argument('--version', action='version', version='dispyadmin ' + __version__)
    parser.add_argument('--config', metavar='FILE', help='read options from this file; the command line comes first')
    parser.add_argument('--save_config', metavar='FILE', nargs='?', const='-',
                        help='write the options given to this file, readable by its owner alone, or to standard output; '
                             'then exit')
    parser.add_argument('--list', action='store_const', const='table',
                        help='print the nodes, then exit: as told by the dispyadmin that runs at --http_host and '
                             '--http_port, else found in a few seconds. Exit status: 0 all answer, 3 some are unreachable '
                             'or locked, 4 there are none, 1 it cannot be told')
    for form in ('json', 'csv'):
        parser.add_argument('--' + form, dest='forms', action='append_const', const=form, default=[],
                            help='print the list as %s' % form.upper())
    parser.add_argument('--diagnose', metavar='HOST[:PORT]', help='say why the node at this host is not there or does not '
                        'work, with the other options as given, and what helps; then exit: 0 when nothing is wrong with it, '
                        '3 when something is')
    short = {'hosts': ['-i'], 'debug': ['-d']}
    for option in OPTIONS:
        is_list = option.default == []
        kind = (dict(action='store_const', const='true') if option.metavar is None else
                dict(metavar=option.metavar, action='append' if is_list else 'store'))
        more = ('; can be given again' if is_list else
                ' (default: %s)' % option.default if option.default else '')
        parser.add_argument(*short.get(option.key, []), '--' + name_of(option), help=option.help + more, **kind)
    return parser


def read_settings(argv, environ):
    """Command line, environment and configuration file as one namespace: every option, parsed; `given`, the texts to save;
    and `save_config`, `diagnose`, `list`.  The secret is still as it was given.  UsageError."""
    settings = build_parser().parse_args(argv)
    line = {name: text for name, text in vars(settings).items() if name in KEYS and text is not None}
    where = '--config %s' % settings.config
    config = parse_config(read_text(settings.config, where), where) if settings.config else {}
    secret = environ.get('DISPYADMIN_SECRET')
    settings.given = {KEYS[name].key: text for texts in (config, line) for name, text in texts.items()}
    vars(settings).update((option.key, option.default) for option in OPTIONS)
    for source, texts in (('credential ', find_credentials(environ)), (where + ': ', config),
                          ('DISPYADMIN_SECRET, as --', {'secret': Literal(secret)} if secret else {}), ('--', line)):
        for name, text in texts.items():
            setattr(settings, KEYS[name].key, _read(KEYS[name].parse, text, source + name))
    if settings.diagnose is not None:
        settings.diagnose = _read(split_host_port, settings.diagnose, '--diagnose')
    _check_together(settings)
    settings.list = settings.forms[0] if settings.forms else settings.list
    return settings


def _check_together(settings):
    port, names = settings.reply_port, collections.Counter(group.name for group in settings.groups)
    twice = ', '.join(name for name, count in names.items() if count > 1)
    for is_wrong, name, sentence in (
            (settings.forms and not settings.list, 'json and --csv', 'go with --list only'),
            (len(settings.forms) > 1, 'json and --csv', 'choose one form'),
            (settings.keyfile and not settings.certfile, 'keyfile', 'needs --certfile too'),
            (settings.events and not settings.on_event, 'event', 'needs --on_event too'),
            (port in RESERVED_PORTS and port != settings.info_port, 'reply_port',
             'dispy itself uses port %s; give another' % port),
            (port and port == settings.http_port, 'reply_port',
             'is the port of the page too; give another, or another --http_port'),
            (twice, 'group', '%s is given twice' % twice)):
        if is_wrong:
            raise UsageError('--%s: %s' % (name, sentence))


def find_credentials(environ):
    """{option: text} of the credentials that systemd hands to a service; see systemd.exec(5).  UsageError."""
    found = {}
    for credential, name, prefix in (('secret', 'secret', '@'), ('token', 'http_token', '')):
        path = os.path.join(environ.get('CREDENTIALS_DIRECTORY') or os.devnull, credential)
        # dispyadmin.service makes an empty one where root has none
        if os.path.exists(path) and read_text(path, 'credential ' + path, first_line=True).strip():
            found[name] = prefix + path
    return found


def _read(parse, text, where):
    """What a text, or each text of a list, stands for.  UsageError."""
    if isinstance(text, list):
        return [_read(parse, item, where) for item in text]
    try:  # Python 3.6 in the C locale spells what is not ASCII as bytes
        return parse(type(text)(text.encode('utf-8', 'surrogateescape').decode('utf-8')))
    except UnicodeError:
        raise UsageError('%s: is not text in UTF-8' % where)
    except ValueError as error:
        raise UsageError('%s: %s' % (where, error))


def parse_config(text, where):
    """{name as written: text, or list of texts} of a configuration.  UsageError, which begins with `where`."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(re.sub('\r\n?', '\n', text))
    except (configparser.Error, ValueError) as error:  # its text may show a line with the secret: its number will do
        number = getattr(error, 'lineno', None) or (getattr(error, 'errors', None) or [[0]])[0][0]
        what = 'sets %s again' % error.option if hasattr(error, 'option') else 'is not "option = value" under [DEFAULT]'
        raise UsageError('%s: line %d %s' % (where, number, what))
    for section in parser.sections():
        raise UsageError('%s: unknown section [%s]; options are under [DEFAULT]' % (where, section))
    texts = dict(parser.defaults())
    is_upstream = UPSTREAM_NAMES == set(texts) - {'hosts', 'ip_addrs'} != set(texts)
    for name, text in list(texts.items()):
        option = KEYS.get(name)
        if option is None:
            raise UsageError('%s: %s: there is no such option' % (where, name))
        if option.default == []:
            texts[name] = _read_list(text, where + ': ' + name)
        elif (not text or text == 'None' and (option.parse is _file or option.default is None)
              or is_upstream and name in ('info_port', 'node_port') and text in DISPY_PORTS):
            del texts[name]
        elif is_upstream and name == 'secret' and re.match(r'@|-\Z', text):
            texts[name] = Literal(text)
    return texts


def _read_list(text, where):
    """A Python list of texts, as upstream saves it, or words with commas or spaces between.  UsageError."""
    if not re.match(r'\[\s*(u?[\'"]|\])', text):
        return re.findall(r'[^,\s]+', text)
    try:
        return list(map(str.__str__, ast.literal_eval(text)))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UsageError("%s: must be a list of texts, as in ['head1', '10.0.0.1']" % where)


def write_config(given):
    """The text of a configuration file with these options.  UsageError, OSError."""
    lines = ['[DEFAULT]']
    for option in [option for option in OPTIONS if given.get(option.key)]:
        text, read_back = given[option.key], None
        prefix = '@' if option.parse is _secret and text.startswith('@') else ''
        if prefix or option.parse is _file:
            text = prefix + os.path.abspath(text[len(prefix):])
        line = '%s = %s' % (name_of(option), text)
        with contextlib.suppress(UsageError, UnicodeError):
            line = line.encode('utf-8', 'surrogateescape').decode('utf-8')
            read_back = ['%s = %s' % item for item in parse_config('[DEFAULT]\n' + line, '').items()]
        if read_back != [line] or isinstance(given[option.key], Literal):
            raise UsageError('--%s: a text that begins or ends with space, has several lines, or means something else in a '
                             'configuration file, cannot be saved' % name_of(option))
        lines.append(line)
    return '\n'.join(lines) + '\n'


def save_config(settings):
    """Write the options given to the file that --save_config names, or to standard output.  UsageError, StartError."""
    name = settings.save_config
    try:
        data = write_config(settings.given).encode('utf-8')
        if name == '-':
            write_out(data, '--save_config')
        elif os.path.exists(name) and not os.path.isfile(name):
            with open(name, 'wb') as file:  # a device or a pipe stays what it is
                file.write(data)
        else:
            os.close(replace_file(os.path.realpath(name), data))
    except OSError as error:
        raise UsageError('--save_config %s: %s' % (name, system_error(error)))


def read_secret(text):
    """The secret that --secret stands for.  UsageError."""
    if isinstance(text, Literal) or not re.match(r'@|-\Z', text):
        return text
    if text == '-' and sys.stdin.isatty():
        secret = ask_secret()
    else:
        secret = read_text(0 if text == '-' else text[1:], '--secret ' + text, first_line=True)
    if not secret:
        raise UsageError('--secret %s: the first line is empty' % text)
    return secret


def ask_secret():
    """Ask for a secret at the terminal, without showing it.  UsageError."""
    try:
        on_interrupt(signal.default_int_handler)  # getpass has to make the terminal show again what is typed
        return getpass.getpass('Admin secret: ')
    except (EOFError, KeyboardInterrupt):
        raise UsageError('--secret -: no secret was entered')
    finally:
        on_interrupt(signal.SIG_DFL)


def read_token(name):
    """The token in a --http_token file.  UsageError."""
    token = read_text(name, '--http_token %s' % name, first_line=True)
    if not re.match(r'[A-Za-z0-9._~+/=-]{8,200}\Z', token):
        raise UsageError('--http_token %s: the token must have 8 to 200 letters, digits or . _ ~ + / = -' % name)
    return token


def read_text(name, where, first_line=False):
    """The text, or first line, of a file, device or pipe (0: standard input).  UsageError, which begins with `where`."""
    is_ready, flag = True, getattr(os, 'O_NONBLOCK', 0)  # a pipe is opened before there is a program at its other end
    try:
        with open(name and _file(name), 'rb', closefd=name != 0,
                  opener=lambda name, flags: os.open(name, flags | flag)) as file:
            if flag:
                is_ready = select.select([file], [], [], PIPE_TIME)[0]
                os.set_blocking(file.fileno(), True)
            data = (file.readline if first_line else file.read)(MAX_FILE + 1)  # more may never come
        if not (data or is_ready):
            raise ValueError('no program has written into this pipe within %d seconds' % PIPE_TIME)
        if len(data) > MAX_FILE:
            raise ValueError('is longer than %d bytes' % MAX_FILE)
        return (re.split(b'[\r\n]', data, maxsplit=1)[0] if first_line else data).decode('utf-8-sig')
    except UnicodeDecodeError:
        raise UsageError('%s: is not text in UTF-8' % where)
    except (OSError, ValueError) as error:
        raise UsageError('%s: %s' % (where, system_error(error)))


class Console(Worker):
    """Takes commands from a terminal, while this program is in its foreground."""

    name = 'console'

    def __init__(self, admin, end):
        super().__init__()
        self._admin = admin
        self._end = end  # called for quit
        self._fd = sys.stdin.fileno()
        self._by = Actor('console', user_name(os.geteuid()))

    @staticmethod
    def is_possible():
        """Whether there is a terminal to take commands from."""
        with contextlib.suppress(OSError, ValueError):  # no terminal that controls us
            return termios is not None and os.tcgetpgrp(sys.stdin.fileno()) > 0
        return False

    def turn(self):
        try:
            command = self._read_line().strip().lower()
            if command in self.COMMANDS:
                self.COMMANDS[command][1](self)
            elif command:
                tell('%s: no such command; try help' % printable(command)[:80])
        except InputError as error:
            tell(str(error))
        except (OSError, termios.error):  # the terminal has gone
            self.stopping.wait()

    def _read_line(self):
        """What is typed; nothing when this program ends."""
        while not self.stopping.is_set():
            if os.tcgetpgrp(self._fd) != os.getpgrp():
                self.stopping.wait(1.0)  # in the background; reading would stop the whole program
            elif select.select([self._fd], [], [], LOOK_INTERVAL)[0]:
                data = os.read(self._fd, 4096)
                if not data:
                    tell('End of input; still running. Ctrl-C ends it.')
                    self.stopping.wait()
                return data.decode('utf-8', 'replace').rstrip('\n')
        return ''

    def _help(self):
        tell('\n'.join('%-8s%s' % (name, meaning) for name, (meaning, _) in self.COMMANDS.items()))

    def _nodes(self):
        nodes = sorted((published.view for published in self._admin.table.snapshot().nodes), key=place_key)
        tell(table_of_nodes(nodes) + count_nodes(nodes))

    def _scan(self):
        self._admin.scan(self._by)
        tell('Searching for nodes.')

    def _secret(self):
        print('Admin secret (not shown): ', end='', flush=True)
        before = termios.tcgetattr(self._fd)
        try:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, before[:3] + [before[3] & ~termios.ECHO] + before[4:])
            secret = self._read_line()
        finally:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, before)
        tell('')
        if not self.stopping.is_set():
            results = self._admin.add_secret(secret, self._by)
            tell('\n'.join(['%s: %s' % (result['id'], result['message']) for result in results]
                           + ['%s unlocked.' % count_of(len(results), 'node')]))

    COMMANDS = {'nodes': ('list the nodes', _nodes), 'scan': ('search for nodes now', _scan),
                'secret': ('add an admin secret', _secret), 'help': ('list the commands', _help),
                '?': ('list the commands', _help), 'quit': ('end dispyadmin', lambda self: self._end()),
                'exit': ('end dispyadmin', lambda self: self._end())}


class _LogFormatter(logging.Formatter):
    """One line for each thing that happened; what came from the network cannot add lines or move the cursor."""

    def format(self, record):
        trace = self.formatException(record.exc_info).split('\n') if record.exc_info else []
        text = '\n    '.join(printable(line) for line in [record.getMessage()] + trace)
        return '%s %s: %s' % (self.formatTime(record), record.levelname.lower(), text)


def start_logging(debug, level=logging.INFO):
    """Log to standard error, from this level on or all."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LogFormatter())
    logging.basicConfig(level=logging.DEBUG if debug else level, handlers=[handler])


# ---------------------------------------------------------------------------------------------------------------------
# Listing: the table of nodes on standard output
# ---------------------------------------------------------------------------------------------------------------------

ALL_ANSWER, SOME_DO_NOT, NO_NODES = 0, 3, 4  # exit statuses of --list; 1 and 2 are as without it


def list_nodes(settings):
    """The command --list: print the nodes; the exit status.  UsageError, StartError."""
    url, nodes = ask_running(settings)
    way = 'as told by the dispyadmin at %s' if nodes is not None else 'no dispyadmin runs at %s; found by asking'
    nodes = find_nodes(settings) if nodes is None else nodes
    nodes.sort(key=place_key)
    tell('dispyadmin: %s: %s' % (way % url, count_nodes(nodes)), sys.stderr)
    text = {'json': json_of_nodes, 'csv': csv_of_nodes, 'table': table_of_nodes}[settings.list](nodes)
    write_out(text.encode(sys.stdout.encoding or 'utf-8', 'replace'), '--list')
    is_any_lost = any(node['state'] in (UNREACHABLE, LOCKED) for node in nodes)
    return NO_NODES if not nodes else SOME_DO_NOT if is_any_lost else ALL_ANSWER


def place_key(node):
    """Orders nodes by address, as a number, and port."""
    address = ipaddress.ip_address(node['ip_addr'].partition('%')[0])
    return address.version, int(address), node['ip_addr'], node['port']


def count_nodes(nodes):
    """How many nodes there are, and in which states."""
    counts = collections.Counter(node['state'] for node in nodes)
    return ', '.join([count_of(len(nodes), 'node')]
                     + ['%d %s' % (counts[state], state) for state in STATES if counts[state]])


# --- from a dispyadmin that runs ---

def ask_running(settings):
    """(URL, nodes in JSON) of the dispyadmin that runs where the options say; nodes are None when none runs there.

    StartError when it does not tell them.
    """
    host, port = {'0.0.0.0': '127.0.0.1', '::': '::1'}.get(settings.http_host, settings.http_host), settings.http_port
    place, token = format_id(host, port), settings.http_token
    why = "is not dispyadmin, perhaps dispy's own web server (dispyscheduler --httpd); give another --http_port"
    host = '127.0.0.1' if is_localhost(host) else host  # no resolver is needed for that
    contexts = [None, ssl.create_default_context()]
    if settings.certfile:
        contexts = [tls_contexts(settings.certfile, settings.keyfile)[0]]
    elif is_address(host) and is_loopback(host):  # nothing is checked, as without TLS
        contexts[1].check_hostname, contexts[1].verify_mode = False, ssl.CERT_NONE
    for context in contexts:
        try:
            status, data = _request_nodes(host, port, context, {})
            if status == 401 and token:  # it is sent only when it is asked for
                status, data = _request_nodes(host, port, context, {'Authorization': 'Bearer ' + token})
            return '%s://%s/' % ('https' if context else 'http', place), _read_nodes(status, data, token)
        except ConnectionRefusedError:
            return place, None
        except ssl.SSLError as error:
            why = 'fails in TLS (%s); give the certificate of dispyadmin as --certfile FILE, or another --http_port' % (
                printable(getattr(error, 'reason', None) or error))
        except socket.timeout:
            why = ('does not answer within %d seconds; if it is not dispyadmin, give another --http_port' % LIST_ANSWER_TIME)
        except (OSError, http.client.HTTPException):
            continue
        except Error as error:
            why = error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        break
    raise StartError('--list: the server at %s %s' % (place, why))


def _request_nodes(host, port, context, headers):
    """(status, body) of GET /api/nodes, at most one byte more than MAX_LIST.  ConnectionRefusedError when nothing listens
    there, another OSError or HTTPException when it does not speak HTTP in this way."""
    with contextlib.closing(http.client.HTTPConnection(host, port)) as connection:
        try:
            connection.sock = socket.create_connection((host, port), LIST_ANSWER_TIME)
        except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError):
            raise  # it was connected, and ended at once
        except (OSError, UnicodeError):
            raise ConnectionRefusedError()
        if context:
            connection.sock = context.wrap_socket(connection.sock, server_hostname=host)
        connection.request('GET', '/api/nodes', headers=headers)
        response = connection.getresponse()
        return response.status, response.read(MAX_LIST + 1)


def _read_nodes(status, data, token):
    """The nodes in an answer.  Error with what else it says; else as check_node()."""
    if status == 401:
        raise Error('does not take the token in the file of --http_token' if token else
                    'wants its token: give the file with it as --http_token FILE')
    if len(data) > MAX_LIST:
        raise Error('tells more than %d bytes' % MAX_LIST)
    answer = json.loads(data.decode('utf-8'))
    if status != 200:
        raise Error('says: %s' % printable(answer['error'])[:500])
    for node in answer['nodes']:
        check_node(node)
    return answer['nodes']


def check_node(node):
    """ValueError, TypeError, KeyError or AttributeError unless this is a node as the HTTP interface shows it."""
    check_id(node['id'])
    check_id(node.get('announces') or node['id'])
    if node['state'] not in STATES or format_id(node['ip_addr'], node['port']) != node['id']:
        raise ValueError('a node that is none')
    for field in FIELDS:
        kinds = (int, float, type(None)) + (() if field.outer else (str,))
        if field.is_in_csv and not ((field.outer or field.key) in node and isinstance(field.of(node), kinds)):
            raise TypeError('a field that is none')
    encode_json(node)  # ValueError when a number is none that JSON has


# --- without one ---

def find_nodes(settings):
    """The nodes that answer within a few seconds, and those of --node, in JSON.  UsageError, StartError."""
    settings.secret = read_secret(settings.secret)
    admin = bystander(settings)
    with running(admin):
        now = began = changed = time.monotonic()
        found = 0
        while now - began < LIST_LONGEST:
            time.sleep(0.1)
            now, nodes = time.monotonic(), admin.table.snapshot().totals['nodes']
            if admin.is_finding() or nodes != found:
                changed, found = now, nodes
            elif found and now - changed >= LIST_QUIET or now - began >= LIST_TIME:
                break
        return [published.view for published in admin.table.snapshot().nodes]


def bystander(settings):
    """An Admin that only looks, beside one that may run: nothing is kept, set, or told, and the info port is left to whom it
    belongs to.  StartError."""
    vars(settings).update(info_port=0, state='', keep=False, on_event='', events=[], poll_interval=MOST_INTERVAL)
    try:
        return Admin(settings)
    except StartError:
        if not settings.reply_port:
            raise
        settings.reply_port = None  # the one that runs has it
        return Admin(settings)


# --- as text ---

COLUMNS = sorted((field for field in FIELDS if field.column), key=operator.attrgetter('column'))
WIDEST = 40  # characters of a cell, but in the last column


def table_of_nodes(nodes):
    """Aligned columns, with a line of titles; numbers are on the right."""
    columns = []
    for field in COLUMNS:
        cells = [field.title.upper()] + [_cell(field, node) for node in nodes]
        widest = max(map(width, cells))
        spaces = [' ' * (widest - width(cell)) for cell in cells]
        columns.append(map(operator.add, *(spaces, cells) if field.is_number else (cells, spaces)))
    return ''.join('  '.join(row).rstrip() + '\n' for row in zip(*columns))


def _cell(field, node):
    value = field.of(node)
    text = ('' if value is None else '%d %%' % value if field.unit == '%' else _bytes(value) if field.unit == 'B' else
            printable(value))
    return text if len(text) <= WIDEST or field is COLUMNS[-1] else text[:WIDEST - 1] + '\u2026'


def _bytes(number):
    """A number of bytes as people read it."""
    power = min(max(int(number).bit_length() - 1, 0) // 10, 4)
    number, unit = number / 1024 ** power, ('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]
    return '%d %s' % (number, unit) if power == 0 or number >= 100 else '%.1f %s' % (number, unit)


def width(text):
    """How many places a text takes on a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in 'WF' else 1 for c in text)


def json_of_nodes(nodes):
    """A JSON array, one node in each line."""
    text = '[%s]\n' % ',\n '.join(map(encode_json, nodes))
    return text.replace('\x7f', '\\u007f')  # the one control character that JSON leaves as it is


def csv_of_nodes(nodes):
    """CSV with a line of titles."""
    out, fields = io.StringIO(), [field for field in FIELDS if field.is_in_csv]
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow([field.csv_name for field in fields])
    writer.writerows([_csv_cell(field.of(node)) for field in fields] for node in nodes)
    return out.getvalue()


def _csv_cell(value):
    """A value as it goes into CSV.  A text that a spreadsheet would take for a formula gets an apostrophe."""
    if isinstance(value, str):
        value = printable(value)
        return "'" + value if value.startswith(('=', '+', '-', '@')) else value
    return str(value).lower() if isinstance(value, bool) else value


def write_out(data, option):
    """Write bytes to standard output; quietly less of it when its reader has gone.  StartError."""
    if not sys.stdout.writable():
        raise StartError('%s: there is no standard output' % option)
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains of it at its end
        if not isinstance(error, BrokenPipeError):
            raise StartError('%s: cannot write to standard output. %s' % (option, system_error(error)))


# ---------------------------------------------------------------------------------------------------------------------
# Entry
# ---------------------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def running(*workers):
    """Start these, and end them after what is done meanwhile, the last one first, within END_TIME."""
    try:
        for worker in workers:
            worker.start()
        yield
    finally:
        for worker in workers:
            worker.end()
        deadline = time.monotonic() + END_TIME
        for worker in reversed(workers):
            worker.join(deadline)


def serve(settings):
    """Run until a signal or the console ends it; the exit status.  StartError."""
    # Nearly all that a poll makes goes with its last reference.  The search for the rest, which comes every 700 objects
    # unless told otherwise, took 8 % of the CPU of polling.
    gc.set_threshold(10000, 20, 20)
    admin, server, ended = Admin(settings), None, Wakeup()
    try:
        server = WebServer(admin, settings, max(16, min(512, allow_many_files() // 4)))
        # The kernel may give a signal to any thread; this way the main one wakes whichever it is.
        signal.set_wakeup_fd(ended.writer.fileno())
        on_interrupt(lambda *_: ended.set())
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        console = [Console(admin, ended.set)] if Console.is_possible() else []
        with running(admin, server, *console):
            _tell_start(admin, server, settings)
            if console:
                tell('Commands: %s' % ', '.join(Console.COMMANDS))
            select.select([ended.reader], [], [])
    except StartError:
        admin.discard()
        if server:
            server.finish()
        raise
    finally:
        signal.set_wakeup_fd(-1)
        ended.close()
    left = admin.reconciler.left_drained()
    if left:
        tell('Left drained, at 0 CPUs, and remembered by nothing (no --state): %s' % ', '.join(left))
    return 0


def _tell_start(admin, server, settings):
    if settings.reply_port is None and admin.listener.reply_port not in (REPLY_PORT, settings.info_port):
        logger.info('reply port %d is taken; nodes answer searches at TCP port %d: let it through the firewall', REPLY_PORT,
                    admin.listener.reply_port)
    if not server.loopback and not server.tls:
        logger.warning('the page is served beyond this machine without TLS: secrets and the token travel in clear; '
                       'give --certfile, or keep it on localhost and use a tunnel')
    tell('dispyadmin %s: %s' % (__version__, server.url(settings.http_host)))


def tell_diagnosis(settings):
    """Diagnose a host and print what is found.  The exit status: 0 when no problem is found, else 3."""
    admin = bystander(settings)
    with running(admin.poller, admin.listener, admin.announcer):
        found = diagnose(admin, *settings.diagnose, ask_running=functools.partial(ask_running, settings))
    for step in found['steps']:
        tell('%s %-9s %-9s %s' % (MARKS[step['state']], step['state'], step['step'], step['message']))
    tell('Fix: %s' % found['fix'] if found['fix'] else 'No problem found.')
    return 3 if found['fix'] else 0


def tell(line, stream=None):
    """Print a line to standard output, if there is anywhere to print it, as far as there are letters for it."""
    stream = stream or sys.stdout
    try:
        encoding = stream.encoding or 'utf-8'
        print(line.encode(encoding, 'replace').decode(encoding), file=stream, flush=True)
    except (OSError, ValueError, AttributeError):
        pass  # it is closed, or full


def open_standard_streams():
    """Fill descriptors 0 to 2 where they are closed: what is printed would go into the socket that came to be there.  That
    there is no standard output can be told by its not being writable."""
    for name, mode in (('stdin', 'r'), ('stdout', 'r'), ('stderr', 'w')):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), mode, closefd=False))


def on_interrupt(handler):
    """Set what Ctrl-C does, unless whoever started this program ignores it, as shells do for what runs in the background."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def main(argv=None):
    """The command `dispyadmin`.  Returns the exit status: 0 ended, 1 cannot start, 2 usage or configuration, 3 something is
    wrong with the node that --diagnose names; see ALL_ANSWER for those of --list."""
    try:
        open_standard_streams()
        on_interrupt(signal.SIG_DFL)  # it ends at once and without a word, as by SIGTERM, until it serves
        settings = read_settings(sys.argv[1:] if argv is None else argv, os.environ)
        if settings.save_config:
            save_config(settings)
            return 0
        os.environ.pop('DISPYADMIN_SECRET', None)  # what is started from here has no business with it
        settings.http_token = read_token(settings.http_token) if settings.http_token else ''
        if not settings.list:
            settings.secret = read_secret(settings.secret)
        command = list_nodes if settings.list else tell_diagnosis if settings.diagnose else serve
        start_logging(settings.debug, logging.INFO if command is serve else logging.WARNING)
        return command(settings)
    except (UsageError, StartError, OSError) as error:
        tell('dispyadmin: %s' % printable(system_error(error)), sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == '__main__':
    sys.exit(main())
