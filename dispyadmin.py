#!/usr/bin/env python3
# Copyright 2026 the dispyadmin authors
# SPDX-License-Identifier: Apache-2.0
"""dispyadmin: find, watch and control the nodes of a dispy cluster from a web page.

Copy this one file to the head node of the cluster and run it:

    python3 dispyadmin.py --secret -

then open http://localhost:8181/.  It needs Python 3.6 or newer and nothing else: no packages, no files beside it.
"Nodes" are the machines that run dispynode.py; those started with --admin_secret can be controlled.

Ports (of dispy 4.15; releases before use 61590 and 61591, and both pairs are served):

    9700  UDP and TCP  nodes announce themselves here and answer discovery; shared in turns with dispy clients
    9701  UDP and TCP  nodes listen here; discovery and every question and control go there
    8181  TCP          the web page, on localhost unless told otherwise

Threads, and what they share:

    listener   hears datagrams and connections of nodes  --+                  +--> http, http-N   the page and its JSON
    announcer  asks for nodes on every interface           +--> NODE TABLE ---+--> console        commands on a terminal
    poller     asks every known node; pairs; controls    --+    one lock      +--> main           waits for the end

What is promised: a node that does not answer never delays one that does; what the network sends is never executed, only
read as plain values; an auth code goes only to the address that has shown the sign which it is made from.

The module reads from top to bottom: facts, values, state, threads, surface, entry.  Look for the banners.
"""
import argparse
import ast
import collections
import configparser
import datetime
import errno
import functools
import gc
import getpass
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
import pickle  # to write requests only: what comes in is read by read_value(), as even a strict find_class is not safe
import random
import re
import secrets
import select
import selectors
import signal
import socket
import ssl
import struct
import sys
import threading
import time
import urllib.parse
import zlib

try:
    import resource
    import termios
except ImportError:  # not a POSIX system: limits stay as they are, and there is no console
    resource = termios = None

__version__ = '1.0.0'

logger = logging.getLogger('dispyadmin')


# ---------------------------------------------------------------------------------------------------------------------
# Protocol facts and limits
# ---------------------------------------------------------------------------------------------------------------------

# Releases that speak this protocol.  A node answers a discovery datagram only if it names the node's own release.
DISPY_RELEASES = ('4.11.0', '4.11.1', '4.12.0', '4.12.1', '4.12.2', '4.12.3', '4.12.4', '4.13.0', '4.14.0',
                  '4.15.0', '4.15.1', '4.15.2')

# (info port, node port): dispy 4.15, then dispy 4.11 to 4.14.
PORT_PAIRS = ((9700, 9701), (61590, 61591))

GROUP_V4 = '239.255.61.59'
GROUP_V6 = 'ff05::b409:3171:9705:5134:6159'
BROADCAST = '255.255.255.255'  # where a node without netifaces listens
HOPS = 1                       # TTL and hop limit of discovery: the segment, no further

SIGN = re.compile(r'[0-9a-f]{40}\Z')
RELEASE = re.compile(r'[0-9]{1,4}(\.[0-9]{1,4}){1,3}\Z')
NO_CODE = b'0' * 40            # an auth code that opens nothing: asks a node for its sign

HTTP_PORT = 8181
POLL_INTERVAL = 60             # seconds
PING_INTERVAL = 600            # seconds
LEAST_INTERVAL = 1             # seconds, on the command line
LEAST_PAGE_INTERVAL = 5        # seconds, from the page: it is open to more hands
MOST_INTERVAL = 86400          # seconds

# How long a node may take for one exchange, from connect to the last byte of its reply, in seconds.  A node on the
# other side of a busy switch answers in milliseconds; one that swaps, in a second.
EXCHANGE_TIME = 4.0
ENDING_TIME = 10.0             # seconds in which a node that announced its end is watched closely
QUICK_TIME = 0.5               # seconds after which an exchange counts as slow
# Polls that are due within a tick begin together, as one of many costs less than one alone: a tick is long enough for so
# many of them, within these bounds, and at most half the poll interval.
TICK_POLLS = 50
LEAST_TICK, LONGEST_TICK = 0.25, 1.0  # seconds
STARVED_TIME = 0.2             # seconds without new exchanges when the system has no more file descriptors
FIRST_PAUSE = 2.0              # seconds until a silent node is asked again; doubled each time ...
LONGEST_PAUSE = 60.0           # ... up to this

# The info port is shared with dispy clients, which try to take it every 5 s and must have it within 30 s: a client
# that starts just after the port was taken waits 16 s, then at most 5 s more for its own next try, which falls into
# the 7 s in which the port is free.
HOLD_TIME = 16.0               # seconds
REST_TIME = 7.0                # seconds
RETRY_TIME = 5.0               # seconds between tries while a client has the port
DEAF_PING_INTERVAL = 30.0      # seconds between discoveries while the port is not ours
EARLY_PINGS = {1: 3.0, 2: 6.0}  # seconds after the first and the second discovery: datagrams get lost
WATCH_INTERVAL = 10.0          # seconds between looks at this machine's addresses

# A full reply has 13 fields, one of which has four.  With the longest name that is shown (MAX_TEXT characters of 4 bytes),
# numbers of 9 bytes and field names it stays below 2 KiB; eight times that leaves room for fields of later releases.
MAX_MESSAGE = 16 * 1024        # bytes
MAX_DATAGRAM = 2 * 1024        # bytes: nodes send about 200
MAX_OPCODES = 4096             # steps in reading one message: 17 values make 110
MAX_DEPTH = 8                  # containers within containers: nodes send 2
MAX_INT_BYTES = 16             # disk sizes need 8
MAX_LENGTHS = 128              # lengths of replies whose shapes are remembered; one cluster has a few dozen
MAX_LAYOUTS = 4                # shapes for each length, of 3 KB: 128 * 4 * 3 KB = 1.5 MB
MAX_TEXT = 200                 # characters of a name that are kept
MAX_ADDRESSES = 16             # addresses kept of one node: interfaces of a well connected machine, twice
MAX_SIGNS = 3                  # signs taken from one node in one conversation: it may restart in the middle of it
MAX_SECRETS = 32               # each costs one exchange with each locked node, once
MAX_COMPLAINTS = 200           # senders of bad messages that are named in the log, each hour
MAX_RELEASES = 32              # releases asked for: the twelve known ones, and what is heard from newer nodes
MAX_WAITING = 8192             # announced addresses that wait to be asked: 8192 * 600 bytes = 5 MB
MAX_MEETINGS = 64              # of them from one address in a minute: dispynodes on one machine, one for each port
MAX_NODES = 50000              # rows: at about 8 KB each, lists packed for readers included, 400 MB
MAX_REMOVED = 10000            # forgotten ids remembered for readers that ask for changes
MAX_HEAD = 32 * 1024           # bytes of a request before its body: browsers send below 2 KiB, cookies of others included
MAX_BODY_NODES = 20000         # ids in one request of the browser
MAX_BODY = MAX_BODY_NODES * 64  # bytes of it: an id has up to 60 (IPv6 with an interface's name), and two quotes, a comma
REQUEST_TIME = 15.0            # seconds in which a request must have arrived whole
LINGER_TIME = 1.0              # seconds in which what still comes is read after the last answer
END_TIME = 0.7                 # seconds that threads may take to end; those that then still run die with the program
IDLE_TIME = 75.0               # seconds that a browser may keep a connection open without asking


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------

class Error(Exception):
    """Something that an administrator is told as one sentence."""


UNEXPECTED = 'dispyadmin met an unexpected error; see its log.'


class WireError(Error):
    """Bytes from the network that are not what the protocol allows."""


class NodeError(Error):
    """A node could not be asked, or its answer makes no sense."""


class InputError(Error):
    """An operation was asked for with a value that cannot be: the sentence names the field."""


class UnknownNode(Error):
    """An operation names a node that is not in the table."""


class UsageError(Error):
    """Command line or configuration cannot be used (exit status 2)."""


class StartError(Error):
    """Options are well formed but this machine cannot do it: port in use, no such address (exit status 1)."""


# ---------------------------------------------------------------------------------------------------------------------
# Wire codec: bytes <-> values, no sockets
# ---------------------------------------------------------------------------------------------------------------------

def printable(text):
    """`text` safe for a log, a terminal or a page: what is not printable (control characters, direction marks, lone
    surrogates) is replaced by U+FFFD."""
    text = str(text)
    return text if text.isprintable() else ''.join(c if c.isprintable() else '\ufffd' for c in text)


def auth_code(secret, sign):
    """The 40 bytes that open the node with this `sign` (sha1 of secret and sign, in hex; protocol of dispy)."""
    return hashlib.sha1((secret + sign).encode('utf-8', 'surrogateescape')).hexdigest().encode('ascii')


def write_message(tag, value=None):
    """The bytes of a message: b'NODE_INFO:' and a pickle in protocol 2, which every node reads, Python 2.7 included."""
    return tag + (b'' if value is None else pickle.dumps(value, 2))


def frame(code, message):
    """A request as it goes over TCP: auth code, length, message."""
    return code + struct.pack('>L', len(message)) + message


class _Mark:
    """Stands in the reader's stack where a container begins."""


class _AvailInfo(dict):
    """What nodes send as dispy.DispyNodeAvailInfo: cpu, memory, disk, swap."""


class _ValueReader:
    """Reads a pickle of plain values, protocols 0 to 5, and nothing else.

    Known are None, bool, int, float, str, list, tuple, dict with str keys, byte strings of Python 2 (read as str) and
    the one class of the protocol, read as a dict.  Nothing is imported or called.  Containers cannot be shared, so the
    result is a tree, no larger than the bytes it came from.  `read_value` is the way in.
    """

    AVAIL_INFO = ('dispy', 'DispyNodeAvailInfo')
    SCALARS = (str, int, float, bool, type(None))

    def __init__(self, data):
        self.data = data
        self.at = 0
        self.stack = []
        self.memo = {}

    def read(self):
        """The value."""
        for _ in range(MAX_OPCODES):
            if self.at >= len(self.data):
                raise WireError('pickle ends too early')
            code = self.data[self.at]
            self.at += 1
            if code == 0x2e:
                return self.result()
            step = self.STEPS.get(code)
            if step is None:
                raise WireError('pickle opcode %#x is not for plain values' % code)
            step(self)
        raise WireError('more than %d steps in a message' % MAX_OPCODES)

    def result(self):
        if len(self.stack) != 1 or self.stack[0] is _Mark or self.stack[0] is self.AVAIL_INFO:
            raise WireError('pickle does not end with one value')
        return self.stack[0]

    # --- bytes ---

    def take(self, size):
        """The next `size` bytes."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise WireError('pickle ends too early')
        return self.data[start:self.at]

    def line(self):
        end = self.data.find(b'\n', self.at)
        if end < 0:
            raise WireError('pickle ends too early')
        line, self.at = self.data[self.at:end], end + 1
        return line

    def number(self, size):
        """The next `size` bytes as an unsigned number, little end first."""
        return int.from_bytes(self.take(size), 'little')

    # --- stack ---

    def push(self, value):
        self.stack.append(value)

    def pop(self):
        if not self.stack or self.stack[-1] is _Mark:
            raise WireError('pickle takes a value that is not there')
        return self.stack.pop()

    def pop_mark(self):
        """The values above the topmost mark; they and the mark leave the stack."""
        stack = self.stack
        for start in range(len(stack) - 1, -1, -1):
            if stack[start] is _Mark:
                values = stack[start + 1:]
                del stack[start:]
                return values
        raise WireError('pickle lacks a mark')

    def top(self, kind):
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise WireError('pickle adds to something that is no %s' % kind.__name__)
        return self.stack[-1]

    # --- scalars ---

    def text(self, size):
        self.push(self.decode(self.take(size)))

    @staticmethod
    def decode(data):
        try:
            return data.decode('utf-8', 'surrogatepass')
        except UnicodeDecodeError:
            return data.decode('latin-1')  # a byte string of Python 2 in some other encoding

    def long(self, size):
        if size > MAX_INT_BYTES:
            raise WireError('integer of %d bytes' % size)
        self.push(int.from_bytes(self.take(size), 'little', signed=True))

    def decimal(self):
        line = self.line()
        if line in (b'00', b'01'):  # how protocols 0 and 1 write bool
            self.push(line == b'01')
        elif re.match(br'-?[0-9]{1,%d}L?\Z' % (2 * MAX_INT_BYTES), line):
            self.push(int(line.rstrip(b'L')))
        else:
            raise WireError('not an integer: %r' % line[:40])

    def decimal_float(self):
        line = self.line()
        if not re.match(br'-?([0-9.]+([eE][-+]?[0-9]+)?|inf|nan)\Z', line):
            raise WireError('not a number: %r' % line[:40])
        try:
            self.push(float(line))
        except ValueError:
            raise WireError('not a number: %r' % line[:40])

    def quoted(self):
        """A byte string of protocol 0: the literal that Python 2 shows for it."""
        line = self.line()
        if not re.match(br"""('([^'\\]|\\.)*'|"([^"\\]|\\.)*")\Z""", line):
            raise WireError('not a string literal')
        self.push(self.decode(re.sub(br'\\(x[0-9a-f]{2}|.)', self.unescape, line[1:-1])))

    @staticmethod
    def unescape(match):
        what = match.group(1)
        return bytes([int(what[1:], 16)]) if len(what) == 3 else {b'n': b'\n', b't': b'\t', b'r': b'\r'}.get(what, what)

    def escaped(self):
        try:
            self.push(self.line().decode('raw-unicode-escape'))
        except UnicodeDecodeError:
            raise WireError('not a unicode literal')

    # --- containers ---

    def append(self):
        value = self.pop()
        self.top(list).append(value)

    def appends(self):
        values = self.pop_mark()
        self.top(list).extend(values)

    def set_items(self, flat):
        target = self.top(dict)
        if len(flat) % 2 or isinstance(target, _AvailInfo):
            raise WireError('pickle fills a dict in a way that nodes do not')
        for key, value in zip(flat[::2], flat[1::2]):
            if not isinstance(key, str):
                raise WireError('a dict key that is no string')
            target[key] = value

    def set_item(self):
        value = self.pop()
        self.set_items([self.pop(), value])

    def new_dict(self):
        values = self.pop_mark()
        self.push({})
        self.set_items(values)

    def new_tuple(self, size):
        values = [self.pop() for _ in range(size)]
        self.push(tuple(reversed(values)))

    # --- the one class ---

    def find_class(self, module, name):
        if type(module) is not str or type(name) is not str:  # it may be lists in lists, which str() cannot show
            raise WireError('pickle names a class in a way that nodes do not')
        if (module, name) != self.AVAIL_INFO:
            raise WireError('pickle names %s.%s' % (printable(module)[:40], printable(name)[:40]))
        self.push(self.AVAIL_INFO)

    def global_(self):
        self.find_class(self.decode(self.line()), self.decode(self.line()))

    def stack_global(self):
        name, module = self.pop(), self.pop()
        self.find_class(module, name)

    def new_object(self):
        if self.pop() != () or self.pop() is not self.AVAIL_INFO:
            raise WireError('pickle makes an object in a way that nodes do not')
        self.push(_AvailInfo())

    def build(self):
        state = self.pop()
        if type(state) is not dict:
            raise WireError('object state that is no dict')
        self.top(_AvailInfo).update(state)

    # --- memo: scalars can be had again, containers cannot ---

    def put(self, index):
        if not self.stack:
            raise WireError('pickle remembers a value that is not there')
        self.memo[index] = self.stack[-1]

    def get(self, index):
        value = self.memo.get(index, _Mark)
        if type(value) not in self.SCALARS and value is not self.AVAIL_INFO:
            raise WireError('pickle shares a container')
        self.push(value)

    def memo_line(self):
        line = self.line()
        if not re.match(br'[0-9]{1,9}\Z', line):
            raise WireError('not a memo index')
        return int(line)

    STEPS = {code[0]: step for code, step in {
        b'\x80': lambda r: r.take(1), b'\x95': lambda r: r.take(8), b'(': lambda r: r.stack.append(_Mark),
        b'N': lambda r: r.push(None), b'\x88': lambda r: r.push(True), b'\x89': lambda r: r.push(False),
        b'K': lambda r: r.push(r.number(1)), b'M': lambda r: r.push(r.number(2)), b'J': lambda r: r.long(4),
        b'\x8a': lambda r: r.long(r.number(1)), b'\x8b': lambda r: r.long(r.number(4)), b'I': decimal, b'L': decimal,
        b'G': lambda r: r.push(struct.unpack('>d', r.take(8))[0]), b'F': decimal_float,
        b'\x8c': lambda r: r.text(r.number(1)), b'X': lambda r: r.text(r.number(4)),
        b'\x8d': lambda r: r.text(r.number(8)), b'V': escaped,
        b'U': lambda r: r.text(r.number(1)), b'T': lambda r: r.text(r.number(4)), b'S': quoted,
        b'}': lambda r: r.push({}), b'd': new_dict, b's': set_item, b'u': lambda r: r.set_items(r.pop_mark()),
        b']': lambda r: r.push([]), b'l': lambda r: r.push(r.pop_mark()), b'a': append, b'e': appends,
        b')': lambda r: r.push(()), b't': lambda r: r.push(tuple(r.pop_mark())), b'\x85': lambda r: r.new_tuple(1),
        b'\x86': lambda r: r.new_tuple(2), b'\x87': lambda r: r.new_tuple(3),
        b'c': global_, b'\x93': stack_global, b'\x81': new_object, b'b': build,
        b'q': lambda r: r.put(r.number(1)), b'r': lambda r: r.put(r.number(4)), b'p': lambda r: r.put(r.memo_line()),
        b'\x94': lambda r: r.put(len(r.memo)),
        b'h': lambda r: r.get(r.number(1)), b'j': lambda r: r.get(r.number(4)), b'g': lambda r: r.get(r.memo_line()),
    }.items()}


def read_value(data):
    """The plain value in a pickle that came from the network; WireError for anything else.

    Bounded: MAX_MESSAGE bytes, MAX_OPCODES opcodes, MAX_DEPTH containers deep, integers of MAX_INT_BYTES.
    """
    if len(data) > MAX_MESSAGE:
        raise WireError('message of %d bytes' % len(data))
    value = _ValueReader(data).read()
    level = [value] if isinstance(value, (dict, list, tuple)) else []
    for _ in range(MAX_DEPTH):  # level by level, so that depth needs no recursion
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)
                 if isinstance(inner, (dict, list, tuple))]
        if not level:
            return value
    raise WireError('more than %d containers deep' % MAX_DEPTH)


# What a node tells of itself, when its admin secret (or its client secret, where it has no admin secret) is known:
#   {'busy': 1, 'serve': -1, 'clients_done': 2, 'jobs_done': 40, 'cpu_time': 63.1, 'scheduler_ip': '10.0.0.1',
#    'avail_info': <cpu 97.5, memory 8123456789, disk 52345678901, swap 100.0>, 'name': 'n17',
#    'service_start': None, 'service_stop': None, 'service_end': 1767218400, 'cpus': 3, 'max_cpus': 8}
# Here `cpus` becomes what dispy manages, as the rest of the world sees it; the node sends the free ones.
Info = collections.namedtuple('Info', 'name scheduler_ip avail_info cpus busy max_cpus serve clients_done jobs_done cpu_time '
                                      'service_start service_stop service_end')
TOLD = ('name', 'scheduler_ip', 'cpus') + Info._fields[4:]  # what Info is made of; and of that, avail_info:
AVAILABLE = ('cpu', 'memory', 'disk', 'swap')

# The same as bytes, in the one order in which all releases write it from Python 3.6 on.  A text begins with its length:
# there is one alternative for each.  What may follow what is told by the next byte, so a hostile reply is given up in one
# pass.
_FIRST = ('busy', 'serve', 'clients_done', 'jobs_done', 'cpu_time', 'scheduler_ip')
_LAST = ('name', 'service_start', 'service_stop', 'service_end', 'cpus', 'max_cpus')
_SIZED = [re.escape(bytes([size])) + b'.{%d}' % size for size in range(64)]
_MEMO = b'(?:\x94|q.)?'
_SCALAR = b'(N|K.|G.{8}|M..|J.{4}|\x88|\x89|\x8a(?:%b)|\x8c(?:%b))' % (b'|'.join(_SIZED[:MAX_INT_BYTES + 1]),
                                                                    b'|'.join(_SIZED)) + _MEMO


def _key_pattern(text):
    return b'\x8c' + re.escape(bytes([len(text)]) + text.encode('ascii')) + _MEMO


def _item_patterns(keys):
    return b''.join(_key_pattern(key) + _SCALAR for key in keys)


_AVAIL_INFO = _key_pattern('dispy') + _key_pattern('DispyNodeAvailInfo') + b'\x93' + _MEMO + b'[)]\x81' + _MEMO
_REPLY = re.compile(b'\x80[\x04\x05]\x95.{8}}' + _MEMO + b'[(]' + _item_patterns(_FIRST) + _key_pattern('avail_info') +
                    b'(?:N|' + _AVAIL_INFO + b'}' + _MEMO + b'[(]' + _item_patterns(AVAILABLE) + b'ub)' +
                    _item_patterns(_LAST) + b'u[.]', re.DOTALL)


class _Layout:
    """Where the values lie in one reply, and so in every other one that has the same bytes around them."""

    KINDS = {0x4b: ('B', 1), 0x4d: ('H', 1), 0x4a: ('i', 1), 0x47: ('8s', 1)}  # format, bytes before the value
    CONSTANTS = {0x4e: None, 0x88: True, 0x89: False}                         # values without bytes of their own

    def __init__(self, data, match):
        fields, reals, constants, odd = [], [], {}, {0x8c: [], 0x8a: []}
        form, at, real_form, real_at = '<', 0, '>', 0
        for number, field in enumerate(_FIRST + AVAILABLE + _LAST, 1):
            start, end = match.span(number)
            code = data[start] if start >= 0 else 0x4e
            if code in self.CONSTANTS:
                constants[field] = self.CONSTANTS[code]
                continue
            kind, head = self.KINDS.get(code, ('%ds' % (end - start - 2), 2))
            form += '%ds%s' % (start + head - at, kind)
            at = end
            if code == 0x47:  # written with the highest byte first, unlike all else
                real_form += '%dxd' % (start + head - real_at)
                real_at = end
                reals.append(field)
                field = None
            fields.append(field)
            odd.get(code, []).append((TOLD + AVAILABLE).index(field) if field else None)
        order = fields + reals + list(constants)
        self._unpack = struct.Struct('%s%ds' % (form, len(data) - at)).unpack
        self._around = self._unpack(data)[::2]
        self._read_reals = struct.Struct('%s%dx' % (real_form, len(data) - real_at)).unpack
        self._constants = tuple(constants.values())
        self._in_order = operator.itemgetter(*[order.index(field) for field in TOLD + AVAILABLE])
        self._texts, self._longs = odd.values()  # where they are then
        self._has_available = match.start(len(_FIRST) + 1) >= 0

    def read(self, data):
        """What read_reply() returns for a reply of the same length; None when other bytes are around its values."""
        parts = self._unpack(data)
        if parts[::2] != self._around:
            return None
        values = list(self._in_order(parts[1::2] + self._read_reals(data) + self._constants))
        for at in self._longs:
            values[at] = int.from_bytes(values[at], 'little', signed=True)
        for at in self._texts:
            values[at] = _ValueReader.decode(values[at])
        return values[:len(TOLD)], values[len(TOLD):] if self._has_available else None


_layouts = {}  # length of a reply -> its last few _Layouts: nodes of one cluster are much alike.  Poller's thread alone


def read_reply(data):
    """What a reply in the very form in which nodes write it says: [values of TOLD], [those of AVAILABLE] or None.

    None for all else: that is for read_value(), which alone would be the largest part of a poll; this takes an eighth of
    its time.
    """
    layouts = _layouts.get(len(data), ())
    for layout in layouts:
        found = layout.read(data)
        if found is not None:
            return found
    match = _REPLY.match(data)
    if match is None or match.end() != len(data):
        return None
    if len(_layouts) >= MAX_LENGTHS:
        _layouts.clear()
    layout = _Layout(data, match)
    _layouts[len(data)] = (layout,) + tuple(layouts)[:MAX_LAYOUTS - 1]
    return layout.read(data)


def _read_any_reply(data):
    """The same for a reply in any form; WireError when it is no node information."""
    value = read_value(data)
    if not isinstance(value, dict) or 'busy' not in value or 'cpus' not in value:
        raise WireError('a reply that is no node information')
    available = value.get('avail_info')
    return ([value.get(field) for field in TOLD],
            [available.get(field) for field in AVAILABLE] if isinstance(available, dict) else None)


NO_INFO = Info(*[None] * len(Info._fields))

# An announcement (PING, NODE_INFO or TERMINATED): what a node says of itself without being opened.
#   {'ip_addr': '10.0.0.17', 'port': 9701, 'sign': '3f…', 'version': '4.15.2'}
Announcement = collections.namedtuple('Announcement', 'tag ip_addr port sign version')

_TOO_MUCH = 2 ** 62


def _integer(value, low=0, high=2 ** 31):
    return value if type(value) is int and low <= value <= high else None


def _real(value, low=0.0, high=float(_TOO_MUCH)):
    """`value` as a finite float within bounds, else None (NaN fails both comparisons)."""
    return float(value) if type(value) in (int, float) and low <= value <= high else None


def _text(value, most=MAX_TEXT):
    return printable(value[:most]) if isinstance(value, str) else None


# What numbers a node may tell, in the order of TOLD from its fourth on, and of AVAILABLE: types, least, most.  Others are
# None, as is NaN, which fails both comparisons.
_NUMBER = (int, float)
_TIME = (_NUMBER, 0, _TOO_MUCH)
_COUNT = ((int,), 0, _TOO_MUCH)
_NUMBERS = (((int,), 0, 2 ** 31), ((int,), 0, 2 ** 31), ((int,), -1, 2 ** 31), _COUNT, _COUNT, _TIME, _TIME, _TIME, _TIME)
_AVAIL_NUMBERS = ((_NUMBER, 0, 100), _COUNT, _COUNT, (_NUMBER, 0, 100))


def _numbers(values, rules):
    """These values that came from a node, each of them or None."""
    return [value if type(value) in kinds and low <= value <= high else None
            for value, (kinds, low, high) in zip(values, rules)]


def read_info(reply):
    """A node's reply to NODE_INFO: its sign (str) when the auth code opened nothing, else an Info.

    Every field is checked; what is not sane is None.
    """
    if len(reply) == 40:
        sign = reply.decode('latin-1')
        if SIGN.match(sign):
            return sign
    told, available = read_reply(reply) or _read_any_reply(reply)
    numbers, free = _numbers(told[3:], _NUMBERS), _integer(told[2], -2 ** 31)
    cpus = None if free is None or numbers[0] is None else max(0, free + numbers[0])
    return Info(_text(told[0]), _text(told[1]) or None,
                available and tuple(_numbers(available, _AVAIL_NUMBERS)), cpus, *numbers)


def read_announcement(message):
    """PING, NODE_INFO or TERMINATED as an Announcement; None when it is some other message (clients send several)."""
    tag, colon, data = message.partition(b':')
    if not colon or tag not in (b'PING', b'NODE_INFO', b'TERMINATED'):
        return None
    value = read_value(data)
    if not isinstance(value, dict):
        raise WireError('an announcement that is no dict')
    port, sign, version = _integer(value.get('port'), 1, 65535), value.get('sign'), value.get('version')
    if port is None or not isinstance(sign, str) or not SIGN.match(sign):
        return None  # an admin's or a client's own message
    return Announcement(tag.decode('ascii'), _text(value.get('ip_addr'), 64), port, sign,
                        version if isinstance(version, str) and RELEASE.match(version) else None)


REFUSED = 'refused'      # the node understood, and said no
NOT_ADMIN = 'not admin'  # the node has no admin secret, so that controls mean nothing to it


def read_control(reply):
    """A node's reply to a control: dict of the values now in force, REFUSED, or NOT_ADMIN."""
    if not reply or reply.startswith(b'NAK'):
        return NOT_ADMIN
    value = read_value(reply)
    if value == -1:
        return REFUSED
    if not isinstance(value, dict):
        raise WireError('a reply that answers no control')
    kept = {'cpus': _integer(value.get('cpus', 0)), 'serve': _integer(value.get('serve', 0), -1)}
    kept.update((key, _real(value.get(key))) for key in ('service_start', 'service_stop', 'service_end'))
    return {key: kept[key] for key in kept if key in value and (kept[key] is not None or value[key] is None)}


# ---------------------------------------------------------------------------------------------------------------------
# Addresses and sockets
# ---------------------------------------------------------------------------------------------------------------------

def canonical(address, scope=0):
    """One spelling for each IP address: `::ffff:10.0.0.1` is 10.0.0.1, a link-local address names its interface.

    `scope` is the interface index that came with it, if any.  ValueError when it is no IP address.
    """
    text, _, zone = str(address).partition('%')
    if re.search(r'(^|[.:])0[0-9]+\.|\.0[0-9]+\Z', text):
        # octal to some programs, decimal to others
        raise ValueError('%s: a leading zero in an IPv4 address' % printable(address))
    parsed = ipaddress.ip_address(text)
    if parsed.version == 6 and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    if parsed.version == 4 or not parsed.is_link_local:
        return str(parsed)
    if zone.isdigit():
        scope = int(zone)
    elif zone:
        return '%s%%%s' % (parsed, zone)
    try:
        return '%s%%%s' % (parsed, socket.if_indextoname(scope)) if scope else str(parsed)
    except (OSError, OverflowError):
        raise ValueError('%s: there is no such interface' % printable(address))


def peer_address(sockaddr):
    """The canonical address in what accept() and recvfrom() return."""
    return canonical(sockaddr[0], sockaddr[3] if len(sockaddr) > 3 else 0)


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
    return host, check_port(int(port)) if port is not None else None


def check_host(host):
    """`host` when it can be a host name or an IP address, else ValueError."""
    if re.match(r'[0-9.]+\Z', host) or ':' in host:
        try:
            address = canonical(host)
        except ValueError:
            raise ValueError('%s is no IP address' % printable(host)[:80])
        if address == BROADCAST or ipaddress.ip_address(address.partition('%')[0]).is_multicast:
            raise ValueError('%s is not the address of one machine' % address)
        return address
    if not re.match(r'(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*\.?\Z', host):
        raise ValueError('%s is neither a host name nor an IP address' % (printable(host)[:80] or 'an empty text'))
    return host


def check_port(port):
    """`port` when a TCP port can have this number, else ValueError."""
    if not 1 <= port <= 65535:
        raise ValueError('port %d is not between 1 and 65535' % port)
    return port


def resolve(host):
    """All addresses of a host name or an IP address, canonical, IPv4 first.  NodeError when there is none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NodeError('The name %s cannot be resolved (%s); try its IP address.'
                        % (printable(host), getattr(error, 'strerror', None) or error))
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    addresses = (peer_address(entry[4]) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6))
    return list(collections.OrderedDict.fromkeys(addresses))


def is_loopback(address):
    """Whether this canonical address is this machine's loopback."""
    return address == '::1' or address.startswith('127.')


def family_of(address):
    """The socket family of a canonical address."""
    return socket.AF_INET6 if ':' in address else socket.AF_INET


def socket_address(address, port):
    """What connect() and bind() take for a canonical address; a link-local one names its interface."""
    if ':' not in address:
        return address, port
    address, _, zone = address.partition('%')
    try:
        return address, port, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone) if zone else 0
    except OSError:
        raise NodeError('This machine has no interface %s.' % printable(zone))


Interface = collections.namedtuple('Interface', 'name index address prefix broadcast loopback')

# rtnetlink(7) and netdevice(7) of Linux
_GET_LINKS, _GET_ADDRESSES, _DUMP = 18, 22, 0x301
_DONE, _ERROR = 3, 2
_LINK_NAME, _ADDRESS, _LOCAL, _BROADCAST = 3, 1, 2, 4
_UP, _HAS_BROADCAST, _LOOPBACK = 0x1, 0x2, 0x8
_TENTATIVE = 0x40  # an IPv6 address that is still being checked for duplicates cannot be bound


def _kernel_table(kind, head_size):
    """Yield (fixed head, {attribute: bytes}) of each entry of a table that the Linux kernel keeps."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(2)
        sock.bind((0, 0))
        sock.send(struct.pack('=IHHII', 16 + head_size, kind, _DUMP, 1, 0) + bytes(head_size))
        while True:
            data = sock.recv(1 << 16)
            while len(data) >= 16:
                size, answer = struct.unpack_from('=IH', data)
                if answer in (_DONE, _ERROR) or size < 16:
                    return
                yield data[16:16 + head_size], dict(_attributes(data[16 + head_size:size]))
                data = data[(size + 3) & ~3:]


def _attributes(data):
    while len(data) >= 4:
        size, kind = struct.unpack_from('=HH', data)
        if size < 4:
            return
        yield kind, data[4:size]
        data = data[(size + 3) & ~3:]


def interfaces():
    """The addresses of all interfaces that are up, as Interface records.  OSError where there is no netlink."""
    links = {}
    for head, found in _kernel_table(_GET_LINKS, 16):
        _, _, index, flags, _ = struct.unpack('=BxHiII', head)
        links[index] = found.get(_LINK_NAME, b'').rstrip(b'\0').decode('utf-8', 'replace'), flags
    result = []
    for head, found in _kernel_table(_GET_ADDRESSES, 8):
        family, prefix, state, _, index = struct.unpack('=BBBBi', head)
        name, flags = links.get(index, ('', 0))
        raw = found.get(_LOCAL) or found.get(_ADDRESS)
        if family not in (socket.AF_INET, socket.AF_INET6) or not raw or not flags & _UP or state & _TENTATIVE:
            continue
        address = canonical(socket.inet_ntop(family, raw), index)
        result.append(Interface(name, index, address, prefix, _broadcast_address(family, address, prefix, flags, found),
                                bool(flags & _LOOPBACK)))
    return result


def _broadcast_address(family, address, prefix, flags, found):
    """Where a datagram for all of a network goes: what the kernel says, else the network's last address, else None."""
    if family != socket.AF_INET or not flags & (_HAS_BROADCAST | _LOOPBACK):
        return None
    if found.get(_BROADCAST):
        return socket.inet_ntop(family, found[_BROADCAST])
    network = ipaddress.ip_network('%s/%d' % (address, prefix), strict=False)
    return str(network.broadcast_address) if prefix <= 30 else None


# One place from which nodes are asked: the address that goes into the datagram, and where the datagram is sent.
Source = collections.namedtuple('Source', 'address index targets')


def list_interfaces():
    """interfaces(), or an empty list where the kernel cannot be asked."""
    try:
        return interfaces()
    except (OSError, AttributeError, struct.error):
        return []


def local_sources(hosts, multicast):
    """Where discovery is sent from: Source records for `hosts` (addresses), or for every interface when there are none.

    Without a network it is the loopback interface; where the standard library cannot list interfaces, it is the address
    of the default host name.
    """
    known = list_interfaces()
    if hosts:
        return [_source_of(address, known, multicast) for address in hosts]
    sources, linked = [], set()
    outside = [i for i in known if not i.loopback] or ([] if known else _default_interfaces())
    outside.sort(key=lambda i: '%' in i.address)  # a link-local address serves only where there is no other
    for interface in outside or [i for i in known if i.address == '127.0.0.1']:
        if ':' in interface.address:
            if interface.index in linked:
                continue  # one IPv6 address for each interface: the group is the same for all
            linked.add(interface.index)
        sources.append(_source(interface, multicast))
    return sources or [Source('127.0.0.1', 0, ('127.255.255.255', BROADCAST))]


def _source(interface, multicast):
    if ':' in interface.address:
        targets = (GROUP_V6,)
    elif multicast:
        targets = (GROUP_V4,)
    else:  # nodes with netifaces listen at the interface's broadcast address alone, those without at the general one
        targets = tuple(target for target in (interface.broadcast, BROADCAST) if target)
    return Source(interface.address, interface.index, targets)


def _source_of(address, known, multicast):
    """The Source for one of our own addresses, which on loopback is any in 127/8."""
    for interface in known:
        same_net = is_loopback(address) and interface.address == '127.0.0.1'
        if interface.address == address or same_net and ':' not in address:
            return _source(interface._replace(address=address), multicast)
    return _source(Interface('', 0, address, 32, None, False), multicast)


def _default_interfaces():
    """The addresses of the default host name; if that is only loopback (127.0.1.1), the one that routes lead out of."""
    try:
        addresses = [a for a in resolve(socket.gethostname()) if not is_loopback(a)]
    except NodeError:
        addresses = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(('192.0.2.1', 9))  # an address for documentation; connecting a datagram socket sends nothing
            addresses = addresses or [sock.getsockname()[0]]
        except OSError:
            pass
    return [Interface('', 0, address, 32, None, False) for address in addresses]


def open_socket(kind, address, port, family=None):
    """A bound, non-blocking socket that listens (TCP) or hears (UDP).

    TCP: SO_REUSEADDR, so that connections of an earlier run do not stand in the way.  UDP: without, so that a dispy
    client sees the port taken.
    """
    family = family_of(address) if family is None else family
    sock = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)  # a thousand nodes may start at once
        sock.bind(socket_address(address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(4096)  # all nodes of a segment answer a discovery within a second; the kernel may allow less
        sock.setblocking(False)
        return sock
    except BaseException:
        sock.close()
        raise


def tls_contexts(certfile, keyfile):
    """(client side, server side) contexts for nodes that were started with the same files; StartError when unusable.

    As dispy does it: the certificate is the only authority that is trusted, and names in it are not looked at.
    """
    try:
        client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client.check_hostname = False
        client.verify_mode = ssl.CERT_REQUIRED
        client.load_verify_locations(certfile)
        server.load_cert_chain(certfile, keyfile or None, password=_no_password)
        return client, server
    except (OSError, ValueError) as error:
        files = '--certfile %s%s' % (certfile, ' and --keyfile %s' % keyfile if keyfile else '')
        raise StartError('%s cannot be used: %s' % (printable(files), getattr(error, 'strerror', None) or error))


def _no_password():
    raise ValueError('the key is encrypted; dispy needs it without a password')


def allow_many_files(wanted=4096):
    """Raise the limit of open files as far as it may be, and return it: each exchange with a node needs one."""
    if resource is None:
        return 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    best = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (best, hard))
        return best
    except (OSError, ValueError):
        return soft


class Wakeup:
    """Wakes a thread that sleeps in a selector: that one registers `reader` and calls clear(), any thread calls set()."""

    def __init__(self):
        self.reader, self.writer = socket.socketpair()
        self.reader.setblocking(False)
        self.writer.setblocking(False)

    def set(self):
        try:
            self.writer.send(b'.')
        except OSError:
            pass  # full: the sleeper will wake anyway; closed: it is gone

    def clear(self):
        try:
            while self.reader.recv(4096):
                pass
        except OSError:
            pass

    def close(self):
        self.reader.close()
        self.writer.close()


class Worker:
    """A thread with a name and a loop; an unexpected error in one turn is logged, once while it repeats, and goes by.

    A subclass supplies turn(), which is called again and again until end(), and may supply wake() and finish().
    """

    name = 'worker'

    def __init__(self):
        self.stopping = threading.Event()
        self._thread = None
        self._last_error = self._last_problem = (None, 0.0)  # (what was logged, monotonic time)

    def start(self):
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def end(self):
        """Ask the thread to end."""
        self.stopping.set()
        self.wake()

    def join(self, deadline):
        """Wait until the thread has ended, or until this monotonic time: it may hang in a look-up of a name."""
        if self._thread is not None:
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

    def report_once(self, problem):
        """Log what the system refuses, unless it was the same less than a minute ago."""
        last, when = self._last_problem
        if problem != last or time.monotonic() - when > 60:
            self._last_problem = problem, time.monotonic()
            logger.warning('%s', problem)

    def report(self, error):
        """Log an unexpected error, unless it was the same less than a minute ago."""
        kind = '%s: %s' % (type(error).__name__, error)
        last, when = self._last_error
        if kind != last or time.monotonic() - when > 60:
            self._last_error = kind, time.monotonic()
            logger.error('%s goes on after an unexpected error', self.name, exc_info=error)


# ---------------------------------------------------------------------------------------------------------------------
# Node: one record
# ---------------------------------------------------------------------------------------------------------------------

READY, STOPPED, LOCKED, UNREACHABLE = STATES = ('ready', 'stopped', 'locked', 'unreachable')
SUMS = ('cpus', 'busy', 'jobs_done', 'cpu_time')  # what is added up over nodes, in the order of the HTTP interface

LOCKED_REASON = ('No known secret opens it: enter its --admin_secret. If it has none, or the same as its --secret, start '
                 'dispynode again with one of its own.')
NO_ADMIN_REASON = 'It has no --admin_secret, so it can be seen but not controlled: start dispynode again with one.'
FOREIGN_REASON = ('It shows the same sign as %s: it is that node under a second address, or another host that poses as '
                  'it. No auth code is sent to it. If it is the node, forget the other row.')


ELSEWHERE_REASON = ' It showed itself at %s too: forget this row to have it asked there.'


class Known(collections.namedtuple('Known', 'sign secret tried admin code')):
    """How a node was opened last; `code` is the auth code that did it, or one that opens nothing."""

    __slots__ = ()

    def __new__(cls, sign='', secret=None, tried=0, admin=False):
        return super().__new__(cls, sign, secret, tried, admin, NO_CODE if secret is None else auth_code(secret, sign))

    def __repr__(self):
        return 'Known(...)'  # no log shows the secret


STRANGER = Known()


class Node:
    """What is known of one dispynode, at one address and port.  Only NodeTable touches it, under its lock."""

    __slots__ = ('id', 'address', 'port', 'known', 'foreign', 'info', 'version', 'error',
                 'said_end', 'ending_until', 'first_seen', 'update_time', 'aliases')

    def __init__(self, address, port, now):
        self.id = format_id(address, port)
        self.address = address
        self.port = port
        # Known: its sign, which it showed last (a new one means that it was started again); the secret that opened this
        # sign ('' opens nodes without any; None while locked); how many of the admin's secrets did not; whether it is its
        # admin secret, so that it can be controlled.
        self.known = STRANGER
        self.foreign = None      # id of the node that has this sign already, if another has
        self.info = None         # Info: the last full reply; stays when the node is lost
        self.version = None      # dispy release, from its announcements: a reply does not have it
        self.error = 'It has not answered yet.'  # one sentence, while unreachable; else None
        self.said_end = None     # Unix time at which it announced its end
        self.ending_until = 0.0  # monotonic time until which that is believed although it answers
        self.first_seen = now    # Unix time
        self.update_time = None  # Unix time of its last answer
        self.aliases = ()        # ids of other addresses that show the same sign

    def state(self, now):
        """(state, reason or None): what the node does at Unix time `now`."""
        if self.error:
            return UNREACHABLE, self.error + (ELSEWHERE_REASON % ', '.join(self.aliases) if self.aliases else '')
        if self.foreign:
            return LOCKED, FOREIGN_REASON % self.foreign
        if self.info is None or self.known.secret is None:
            return LOCKED, LOCKED_REASON
        idle = idle_reason(self.info, now)
        return (STOPPED if idle else READY), idle

    def publish(self, sequence, now):
        """A Published of what it is at Unix time `now`."""
        state, reason = self.state(now)
        controllable = self.known.admin and state in (READY, STOPPED)
        if not controllable and state in (READY, STOPPED):
            reason = ' '.join(filter(None, (reason, NO_ADMIN_REASON)))
        return Published(sequence, state, self.info or NO_INFO, (
            self.id, self.address, self.port, self.version, controllable, reason, self.first_seen, self.update_time,
            self.aliases))


def idle_reason(info, now):
    """Why a node takes no jobs at Unix time `now`, as one sentence; None when it takes them.

    The rule is dispynode's own: its Stop time counts, and its End time only where there is no Stop time.
    """
    if info.serve == 0:
        return 'It takes no more clients: the number of clients to serve is 0.'
    if info.cpus == 0:
        return 'It takes no jobs: dispy may use 0 of its CPUs.'
    if info.service_start and info.service_start > now:
        return 'It takes no jobs yet: its service starts later.'
    if (info.service_stop or info.service_end or now + 1) <= now:
        return 'It takes no jobs any more: its service time is over.'
    return None


encode_json = json.JSONEncoder(separators=(',', ':'), allow_nan=False).encode


class Published:
    """A state of a node that readers share.  Never changed, so no lock; what they see is made when first asked for.  Two
    threads may make it at the same moment: they make the same."""

    __slots__ = ('sequence', 'state', 'info', 'shares', '_rest', '_view', '_json')

    def __init__(self, sequence, state, info, rest):
        self.sequence = sequence  # the table's, at this change
        self.state = state
        self.info = info
        # What the node adds to the totals, in the order of SUMS: CPUs while it answers, and work that is done.  Times in
        # whole milliseconds: sums of floats drift, and one that is not sane would swallow the others for good.
        answers = state in (READY, STOPPED)
        self.shares = (answers and info.cpus or 0, answers and info.busy or 0, info.jobs_done or 0,
                       int(1000 * (info.cpu_time or 0)))
        self._rest = rest         # what else view shows
        self._view = self._json = None

    @property
    def view(self):
        """The node as the HTTP interface shows it (see README, HTTP interface)."""
        if self._view is None:
            node_id, address, port, version, controllable, reason, first_seen, update_time, aliases = self._rest
            info = self.info
            self._view = {
                'id': node_id, 'ip_addr': address, 'port': port, 'name': info.name, 'version': version,
                'state': self.state, 'controllable': controllable, 'reason': reason,
                'cpus': info.cpus, 'max_cpus': info.max_cpus, 'busy': info.busy,
                'avail_info': info.avail_info and dict(zip(AVAILABLE, info.avail_info)),
                'clients_done': info.clients_done, 'jobs_done': info.jobs_done, 'cpu_time': info.cpu_time,
                'serve': info.serve, 'scheduler_ip': info.scheduler_ip, 'service_start': info.service_start,
                'service_stop': info.service_stop, 'service_end': info.service_end, 'first_seen': first_seen,
                'update_time': update_time, 'addresses': [node_id] + list(aliases)}
        return self._view

    def json(self):
        """The view in JSON (str)."""
        if self._json is None:
            self._json = encode_json(self.view)
        return self._json


NOTHING = Published(0, None, NO_INFO, ())  # of a node that is not there


# ---------------------------------------------------------------------------------------------------------------------
# Node table: the lock, and what it guards
# ---------------------------------------------------------------------------------------------------------------------

# What a conversation found out: how the node is opened now (Known), and its Info, None when it is not.
Answer = collections.namedtuple('Answer', 'known info')
Snapshot = collections.namedtuple('Snapshot', 'sequence full nodes removed totals')

# What NodeTable.heard() makes of an announcement.
NEW, SAME, CHANGED = 'new', 'same', 'changed'

# What an answer, or the lack of one, is to the administrator.
FOUND, BACK, RESTARTED, OPENED, ALIAS, LOST = 'found', 'back', 'restarted', 'opened', 'alias', 'lost'


class NodeTable:
    """All nodes.  Its lock guards everything in it and is held for microseconds: no I/O and no encoding under it.

    Each change gives the node the next number of one sequence and a new Published; readers ask for what has changed
    since a number.  It starts at the time in microseconds, so that a number of an earlier run is not taken for one of this.
    """

    def __init__(self, clock=time.time, monotonic=time.monotonic):
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()            # guards all that follows
        self._nodes = {}                         # id -> Node
        self._published = {}                     # id -> what readers may have of it, those that changed last at the end
        self._owners = {}                        # sign -> id of the one address that auth codes for it may go to
        self._claims = {}                        # id -> signs that it owns: the row's own, and those of a conversation
        self._aliases = {}                       # id of another address -> id of its node
        self._expected = {}                      # id that is being asked and owns a sign -> ids that show it too
        self._removed = collections.deque(maxlen=MAX_REMOVED)  # (sequence, id)
        self._first = self._sequence = int(clock() * 1e6)
        self._totals = dict.fromkeys((None,) + STATES + SUMS, 0)  # None is the state of NOTHING

    # --- for readers ---

    def snapshot(self, since=None):
        """What has changed after sequence number `since`; everything (full) when there is no telling."""
        with self._lock:
            sequence, totals = self._sequence, self._sums()
            known = since is not None and self._first <= since <= sequence
            full = not known or len(self._removed) == MAX_REMOVED and self._removed[0][0] > since
            # All at once, as a copy of 10,000 references takes 0.1 ms; what was not asked for is left out below.
            nodes = list(self._published.values()) if full or since < sequence else []
            recent = () if full else itertools.takewhile(lambda entry: entry[0] > since, reversed(self._removed))
            removed = {node_id for _, node_id in recent if node_id not in self._nodes}
        if not full:
            del nodes[:first_after(nodes, since)]
        return Snapshot(sequence, full, nodes, sorted(removed), totals)

    def _sums(self):
        """The totals of the HTTP interface.  Lock held."""
        sums = self._totals
        totals = collections.OrderedDict(nodes=len(self._nodes))
        totals.update((key, sums[key]) for key in STATES + SUMS)
        totals['cpu_time'] = sums['cpu_time'] / 1000
        return totals

    def get(self, node_id):
        """The Published of a node, or None."""
        with self._lock:
            return self._published.get(node_id)

    def known(self, node_id):
        """How the node at this address was opened last (Known); STRANGER when it is not in the table."""
        with self._lock:
            node = self._nodes.get(node_id)
            return node.known if node else STRANGER

    def ids(self, state=None):
        """The ids of all nodes, or of those that were published in this state."""
        with self._lock:
            published = list(self._published.items())
        return [node_id for node_id, shown in published if state in (None, shown.state)]

    def __contains__(self, node_id):
        with self._lock:
            return node_id in self._nodes

    # --- for those who talk to nodes ---

    def may_send(self, node_id, sign):
        """Whether auth codes made from `sign` may go to this address: it is the first that has shown the sign.

        Else another host could collect, by showing the sign of a node, the code that opens the node.
        """
        with self._lock:
            owner = self._owners.get(sign)
            if owner is None:
                self._owners[sign] = owner = node_id
                self._claims.setdefault(node_id, set()).add(sign)
            return owner == node_id

    def add(self, address, port):
        """A row for an address that the administrator named, before it has answered."""
        with self._lock:
            node_id = format_id(address, port)
            known = node_id in self._nodes or node_id in self._aliases
            if not known and len(self._nodes) < MAX_NODES:
                self._nodes[node_id] = Node(address, port, self._clock())
                self._changed(self._nodes[node_id])

    def answered(self, node_id, answer, create=False):
        """A node has answered.  Returns what that is to the administrator, FOUND to ALIAS, or None.

        With `create`, an address that is not in the table gets a row, or becomes an alias of the row that has its sign.
        """
        known = answer.known
        with self._lock:
            node = self._nodes.get(node_id)
            owner = self._owners.get(known.sign)
            if owner not in (None, node_id) and (node.known.sign == '' if node else create):
                return self._alias(node_id, owner)
            if node is None:
                if not create or len(self._nodes) >= MAX_NODES:
                    self._release(node_id)
                    return None
                node = self._nodes[node_id] = Node(*split_id(node_id), now=self._clock())
            event = None
            if known is not node.known or node.error or node.foreign:
                if known.sign == node.known.sign and known.secret is None and node.known.secret is not None:
                    return None  # it was asked before the secret came that has opened it meanwhile
                event = self._event(node, known)
                self._take_known(node, known, owner)
            if answer.info is not None:
                node.info = answer.info
            node.update_time = self._clock()
            if node.said_end and self._monotonic() > node.ending_until:
                node.said_end = None
            self._changed(node)
            return event

    @staticmethod
    def _event(node, known):
        """What this answer is to the administrator.  Lock held; the node is as it was before."""
        if node.update_time is None:
            return FOUND
        if node.known.sign != known.sign:
            return RESTARTED
        if node.error:
            return BACK
        return OPENED if node.known.secret is None and known.secret is not None else None

    def _take_known(self, node, known, owner):
        """How it was opened now, which is not as it was the last time.  Lock held."""
        node.aliases += tuple(self._expected.pop(node.id, ()))[:MAX_ADDRESSES]
        self._aliases.pop(node.id, None)
        if node.known.sign != known.sign:
            node.said_end = None
            node.info = None  # the program that these were the details of has ended
        self._release(node.id, keep=known.sign)
        node.known = known
        node.foreign = owner if owner not in (None, node.id) else None
        node.error = None

    def _alias(self, node_id, owner):
        """This address shows the sign of `owner`: it is no row of its own (any more).  Lock held."""
        if node_id in self._nodes:
            self._remove(node_id)
        self._release(node_id)
        node = self._nodes.get(owner)
        aliases = self._expected.setdefault(owner, []) if node is None else node.aliases
        if node_id in aliases or len(aliases) >= MAX_ADDRESSES - 1:
            return None
        self._aliases[node_id] = owner
        if node is None:
            aliases.append(node_id)  # the owner is being asked now
        else:
            node.aliases += (node_id,)
            self._changed(node)
        return ALIAS

    def failed(self, node_id, sentence):
        """A node did not answer.  Returns LOST when it had, else None."""
        with self._lock:
            node = self._nodes.get(node_id)
            if node is None:
                self._release(node_id)
                return None
            self._release(node_id, keep=node.known.sign)
            lost = node.error is None
            ended = node.info and node.info.service_end
            if ended and ended <= self._clock():
                sentence = 'It ended itself at its End time; start dispynode there again.'
            elif node.said_end:
                sentence = 'It ended at %s, as it announced; start dispynode there again.' % clock_time(node.said_end)
            if lost or node.error != sentence:
                node.error = sentence
                self._changed(node)
            return LOST if lost else None

    def _release(self, node_id, keep=None):
        """Give back the signs that an address owns, but `keep`.  Lock held."""
        signs = self._claims.get(node_id, ())
        if keep in signs and len(signs) == 1 and node_id not in self._expected:
            return
        signs = self._claims.pop(node_id, set())
        for sign in signs - {keep}:
            del self._owners[sign]
        if keep in signs:
            self._claims[node_id] = {keep}
        for alias in self._expected.pop(node_id, ()):
            self._aliases.pop(alias, None)

    def heard(self, node_id, announcement):
        """An announcement from this very address.  Returns (NEW, SAME or CHANGED, id of the row that it concerns)."""
        with self._lock:
            row = self._aliases.get(node_id, node_id)
            node = self._nodes.get(row)
            if node is None:
                return NEW, node_id
            same = node.known.sign == announcement.sign
            if same and announcement.version and node.version != announcement.version:
                node.version = announcement.version
                self._changed(node)
            if same and announcement.tag == 'TERMINATED':
                node.said_end, node.ending_until = self._clock(), self._monotonic() + ENDING_TIME
                return CHANGED, row
            return (SAME if same and not node.error else CHANGED), row

    def owner(self, sign):
        """The id of the row that has this sign, or None."""
        with self._lock:
            return self._owners.get(sign)

    def is_ending(self, node_id):
        """Whether the node announced its end a moment ago and still answered then."""
        with self._lock:
            node = self._nodes.get(node_id)
            return bool(node and node.said_end and not node.error)

    def drop_aliases(self, node_id, only=None):
        """Forget the other addresses of a node, or one of them, and return them: each is to be asked again what it is."""
        with self._lock:
            node = self._nodes.get(node_id)
            dropped = [alias for alias in node.aliases if only in (None, alias)] if node else []
            if dropped:
                node.aliases = tuple(alias for alias in node.aliases if alias not in dropped)
                for alias in dropped:
                    self._aliases.pop(alias, None)
                self._changed(node)
            return dropped

    def forget(self, node_id):
        """Remove a row; False when there is none."""
        with self._lock:
            if node_id not in self._nodes:
                return False
            self._remove(node_id)
            return True

    # --- inside, lock held ---

    def _changed(self, node):
        self._sequence += 1
        before = self._published.pop(node.id, NOTHING)
        self._published[node.id] = now = node.publish(self._sequence, self._clock())
        self._count(before, now)

    def _count(self, before, now):
        """Keep the totals: a node was one of these, and is the other."""
        totals = self._totals
        if before.state != now.state:
            totals[before.state] -= 1
            totals[now.state] += 1
        for key, old, new in zip(SUMS, before.shares, now.shares):
            if new != old:
                totals[key] += new - old

    def _remove(self, node_id):
        node = self._nodes.pop(node_id)
        self._sequence += 1
        self._removed.append((self._sequence, node_id))
        self._count(self._published.pop(node_id), NOTHING)
        self._release(node_id)
        for alias in node.aliases:
            self._aliases.pop(alias, None)


def first_after(nodes, sequence):
    """How many of these Published, in the order of their changes, changed no later than that."""
    low, high = 0, len(nodes)
    while low < high:
        middle = (low + high) // 2
        if nodes[middle].sequence <= sequence:
            low = middle + 1
        else:
            high = middle
    return low


def clock_time(seconds):
    """A Unix time as HH:MM:SS of this machine's clock and zone, with the date when it is not today's."""
    then = datetime.datetime.fromtimestamp(seconds)
    today = then.date() == datetime.date.today()
    return then.strftime('%H:%M:%S' if today else '%Y-%m-%d %H:%M:%S')


# ---------------------------------------------------------------------------------------------------------------------
# Node client: conversations, exchanges, and the thread that runs them
# ---------------------------------------------------------------------------------------------------------------------
# A conversation is a generator: it yields requests and is sent replies, so it knows the protocol and no socket.  The
# poller runs many of them at once; each of their exchanges has a connection and a deadline of its own.

def ask_info(request, known, secrets_, may_send):
    """Conversation: what is this node, and does one of the admin's secrets open it?  Returns an Answer.

    `request` is the NODE_INFO message with the admin's own sign; `known` is how the node was opened last; `secrets_` are
    those to try; `may_send(sign)` says whether auth codes made from a sign may go to this address.
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


def is_admin(code):
    """Conversation: does this auth code come from the admin secret?  Asks for a control that does not exist.

    A node that is opened by its client secret, for want of an admin secret, answers that with nothing, others with -1.
    """
    try:
        reply = yield frame(code, write_message(b'SERVICE_TIME:', {'control': 'none', 'time': None}))
        return read_control(reply) is not NOT_ADMIN
    except (WireError, NodeError):
        return True  # no answer is no proof; the first real control will tell


def control(request, known, secrets_, may_send, message):
    """Conversation: send a control, then read what the node says now.  Returns (value, Answer).

    `value` is read_control()'s.  A node that was started again since it was last asked is paired again first.
    """
    answer = None
    if known.secret is None or not may_send(known.sign):
        answer = yield from ask_info(request, known, secrets_, may_send)
        known = answer.known
    for _ in range(2):
        if known.secret is None:
            return NOT_ADMIN, answer
        value = read_control((yield frame(known.code, message)))
        try:
            answer = yield from ask_info(request, known, secrets_, may_send)
        except (NodeError, WireError):
            if value is REFUSED:
                raise
            return value, None  # what it did, it did
        if value is NOT_ADMIN:
            answer = answer._replace(known=answer.known._replace(admin=False))
        if value is not REFUSED or answer.known.sign == known.sign:
            break
        known = answer.known
    return value, answer


class Talk:
    """One conversation with one address.  At its end `done(result, error)` is called, with None for one of them, on the
    poller's thread."""

    __slots__ = ('address', 'port', 'steps', 'done', 'slow', 'request', 'exchange')

    def __init__(self, address, port, steps, done):
        self.address = address
        self.port = port
        self.steps = steps
        self.done = done
        self.slow = False     # whether its next exchange will likely not be answered; poller's thread, from here on
        self.request = None   # what is sent, or waits to be sent, now
        self.exchange = None  # the one under way


class Channel:
    """A connection that never blocks: each step does what can be done now and says what to wait for.

    A step is a method that returns selector events to wait for, or None to go on at once: with the next step, which it has
    set, or with itself.  It waits only when the kernel has no more for it.  When there is no next step, `message` is the one
    message that came in.
    """

    __slots__ = ('sock', 'step', 'expires', 'message', 'events', '_in')

    def __init__(self, sock, step, expires):
        self.sock = sock
        self.step = step
        self.expires = expires  # monotonic time at which it is given up
        self.message = None
        self.events = 0         # what it waits for; 0 when it is not registered with a selector or watch
        self._in = b''

    def advance(self):
        """Go on until there is something to wait for: the events, or None when all is done.  OSError, NodeError."""
        while self.step is not None:
            events = self.step()
            if events:
                return events
        return None

    def handshake(self, then):
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            return selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            return selectors.EVENT_WRITE
        self.step = then
        return None

    def receive(self):
        """One message: 4 bytes of length, then that many bytes.  The length is checked before anything is kept."""
        try:
            data = self.sock.recv(4096)  # more than any reply has
        except (BlockingIOError, ssl.SSLWantReadError):
            return selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            return selectors.EVENT_WRITE
        self._in += data
        if len(self._in) >= 4:
            size, = struct.unpack_from('>L', self._in)
            if size > MAX_MESSAGE:
                raise NodeError('It sends a message of %d bytes, so it is no dispynode.' % size)
            if len(self._in) >= 4 + size:
                self.message = self._in[4:4 + size]
                self.step = None
                return None
        if not data:
            raise NodeError('It closed the connection without an answer; is TLS (--certfile) used on one side only?')
        return None

    def close(self):
        self.sock.close()


NONBLOCK = getattr(socket, 'SOCK_NONBLOCK', 0)


class Exchange(Channel):
    """One request to one node: connect, send, read the reply, close.  Run by the poller's thread alone."""

    __slots__ = ('talk', 'error', 'number', 'early', '_request', '_where', '_tls')

    def __init__(self, talk, tls, expires):
        self.talk = talk
        self.error = None   # NodeError: why it failed
        self.number = -1    # its file descriptor, while it is watched
        self.early = False  # whether something has come in that was told of (EdgeWatch) but not read
        self._request = talk.request
        self._where = socket_address(talk.address, talk.port)
        sock = socket.socket(family_of(talk.address), socket.SOCK_STREAM | NONBLOCK)
        if not NONBLOCK:
            sock.setblocking(False)
        super().__init__(sock, self._connect, expires)
        self._tls = tls

    def _connect(self):
        error = self.sock.connect_ex(self._where)
        if error in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            self.step = self._connected if self._tls else self._send  # send() tells itself what went wrong
            return selectors.EVENT_WRITE
        return self._begin(error)

    def _connected(self):
        return self._begin(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _begin(self, error):
        if error:
            raise OSError(error, os.strerror(error))
        if self._tls:
            self.sock = self._tls.wrap_socket(self.sock, do_handshake_on_connect=False)
            self.step = lambda: self.handshake(self._send)
        else:
            self.step = self._send

    def _send(self):
        try:
            sent = self.sock.send(self._request)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return selectors.EVENT_WRITE
        except ssl.SSLWantReadError:
            return selectors.EVENT_READ
        self._request = self._request[sent:]
        if not self._request:
            self.step = self.receive
            return None if self.early or self._tls else selectors.EVENT_READ
        return selectors.EVENT_WRITE


def connection_error(error):
    """An OSError of an exchange as a sentence that says what to do."""
    if isinstance(error, ssl.SSLError):
        why = printable(getattr(error, 'reason', None) or error)
        if why == 'CERTIFICATE_VERIFY_FAILED':
            return 'It has another certificate: start dispynode and dispyadmin with the same --certfile.'
        return ('TLS fails (%s): is dispynode started with --certfile, too?' % why.lower().replace('_', ' '))
    if error.errno == errno.ECONNREFUSED:
        return 'Connection refused: the machine is there, but dispynode does not run at this address and port.'
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN):
        return 'No route to it: the machine is off, or not on this network.'
    if error.errno in (errno.ECONNRESET, errno.EPIPE):
        return 'It closed the connection while it was asked.'
    return 'It cannot be reached: %s.' % (error.strerror or error)


NO_ANSWER = 'No answer within %g seconds: the machine is off or hangs, or a firewall drops the port.' % EXCHANGE_TIME


class EdgeWatch:
    """Tells which exchanges can go on: each is registered once, and the kernel forgets it when it is closed (epoll, edge-
    triggered: a step goes on until the kernel has no more for it, so nothing is missed)."""

    def __init__(self, wakeup):
        self._exchanges = {}  # file descriptor -> Exchange
        self._wakeup = wakeup.reader.fileno()
        self._epoll = select.epoll()
        self._epoll.register(self._wakeup, select.EPOLLIN)

    def watch(self, exchange, events):
        """Tell when this exchange can go on, with what selectors calls `events`."""
        if not exchange.events:
            exchange.number = exchange.sock.fileno()
            self._epoll.register(exchange.number, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
            self._exchanges[exchange.number] = exchange
        exchange.events = events

    def forget(self, exchange):
        """Tell no more of this exchange, which is closed next, or has been by a failure of TLS."""
        if exchange.events:
            del self._exchanges[exchange.number]

    def wait(self, seconds):
        """(whether the wakeup was set, [exchanges that can go on])."""
        woken, moving = False, []
        for number, events in self._epoll.poll(seconds):
            exchange = self._exchanges.get(number)
            if exchange is None:
                woken = True
            else:
                exchange.early = exchange.early or events != select.EPOLLOUT
                moving.append(exchange)
        return woken, moving

    def close(self):
        self._epoll.close()


class LevelWatch:
    """The same for systems without epoll."""

    def __init__(self, wakeup):
        self._selector = selectors.DefaultSelector()
        self._selector.register(wakeup.reader, selectors.EVENT_READ)

    def watch(self, exchange, events):
        if not exchange.events:
            self._selector.register(exchange.sock, events, exchange)
        elif exchange.events != events:
            self._selector.modify(exchange.sock, events, exchange)
        exchange.events = events

    def forget(self, exchange):
        if exchange.events:
            self._selector.unregister(exchange.sock)

    def wait(self, seconds):
        found = [key.data for key, _ in self._selector.select(seconds)]
        return None in found, [exchange for exchange in found if exchange is not None]

    def close(self):
        self._selector.close()


Watch = EdgeWatch if hasattr(select, 'epoll') else LevelWatch


class Poller(Worker):
    """Runs conversations: many exchanges at once on one thread, so that those without an answer hold up nobody.

    Conversations wait in lanes: what an administrator asked for, polls that are due, and addresses that are new.  Of the
    places, one quarter is kept for quick exchanges.  The others are also for slow ones: those with nodes that will likely
    not answer, and those that last longer than QUICK_TIME.  One for which there is no such place any more is set aside,
    which says nothing about its node, and begun again when there is.

    A turn goes in phases, each for all exchanges that can go on: a processor is faster at one kind of thing done many times
    than at changing between the kernel and the reading of replies.
    """

    name = 'poller'

    def __init__(self, places, tls=None, clock=time.monotonic):
        super().__init__()
        self.places = places      # exchanges at one time; each needs a file descriptor
        self.take_due = lambda now, room, slow_room: ([], [])  # set by Admin: talks that are due: likely ones, others
        self.next_look = lambda: math.inf                      # set by Admin: monotonic time
        self._tls = tls
        self._clock = clock
        self._wakeup = Wakeup()
        self._watch = Watch(self._wakeup)
        # Talks that wait; any thread appends.
        self._urgent, self._urgent_slow, self._likely, self._unlikely = (collections.deque() for _ in range(4))
        self._aside = collections.deque()          # talks whose exchange took long when there was no place for that
        # The rest is this thread's alone.
        self._ready, self._ready_slow = [], []     # talks whose next exchange begins in this turn
        # Exchange -> None, in the order of their deadlines (within QUICK_TIME).
        self._quick, self._slow = collections.OrderedDict(), collections.OrderedDict()
        self._limit = places                       # lower than `places` while the system has no more descriptors
        self._starved_until = 0.0                  # monotonic time until which none is asked for
        self._look_at = 0.0                        # monotonic time at which to look for polls that are due

    # --- any thread ---

    def submit(self, talk, slow=False):
        """Run a conversation before all others; `slow` when it will likely not be answered."""
        talk.slow = slow
        (self._urgent_slow if slow else self._urgent).append(talk)
        self.wake()

    def submit_new(self, talk, likely):
        """Run a conversation with an address that is new; `likely` when it has just connected to us."""
        talk.slow = not likely
        (self._likely if likely else self._unlikely).append(talk)
        self.wake()

    def waiting(self):
        """How many new addresses wait."""
        return len(self._likely) + len(self._unlikely)

    def wake(self):
        self._wakeup.set()

    # --- this thread ---

    def turn(self):
        now = self._clock()
        self._start_talks(now)
        self._launch_all(now)
        patience = self._patience(now)
        woken, moving = self._watch.wait(patience)
        if woken:
            self._wakeup.clear()
            self._look_at = 0.0
        self._advance_all(moving)
        late = self._clock() - now - patience
        if late > 1.0:  # this program was stopped, or starved: that says nothing about the nodes
            for exchange in itertools.chain(self._quick, self._slow):
                exchange.expires += late
        self._expire(self._clock())

    def _patience(self, now):
        """Seconds until something is to be done that no socket tells."""
        then = now if self._ready or self._ready_slow else now + 60.0
        if self._quick:
            then = min(then, self._ages(next(iter(self._quick))))
        if self._slow:
            then = min(then, next(iter(self._slow)).expires)
        if now < self._starved_until:
            then = min(then, self._starved_until)
        elif self._room(now):
            then = min(then, self._look_at)
        return max(0.0, then - now)

    @staticmethod
    def _ages(exchange):
        """When an exchange begins to be slow (monotonic time)."""
        return exchange.expires - EXCHANGE_TIME + QUICK_TIME

    def _room(self, now, slow=False):
        """How many exchanges may begin now, or how many slow ones."""
        if now < self._starved_until:
            return 0
        slow_ones = len(self._slow) + len(self._ready_slow)
        room = self._limit - len(self._quick) - len(self._ready) - slow_ones
        return max(0, min(room, self._limit - self._limit // 4 - slow_ones) if slow else room)

    def _start_talks(self, now):
        for lane, slow in ((self._urgent, False), (self._urgent_slow, True), (self._aside, True)):
            if lane:
                self._start_some(lane, now, slow)
        if now >= self._look_at:
            self._start_due(now)
        for lane, slow in ((self._likely, False), (self._unlikely, True)):
            if lane:
                self._start_some(lane, now, slow)

    def _start_some(self, lane, now, slow):
        while lane and self._room(now, slow):
            talk = lane.popleft()
            talk.slow = slow
            self._start(talk)

    def _start_due(self, now):
        """Begin the polls that are due."""
        room = self._room(now)
        if not room:
            return
        likely, unlikely = self.take_due(now, room, self._room(now, slow=True))
        for talk in unlikely:
            talk.slow = True
        for talk in itertools.chain(likely, unlikely):
            self._start(talk)
        # Likely ones for which there was no room are begun as soon as there is.
        self._look_at = now if len(likely) == room else self.next_look()

    def _start(self, talk):
        """Begin a conversation, or go on with one that was parked or set aside."""
        if talk.request is None:
            self._tell(talk, talk.steps.send, None)
        else:
            self._make_ready(talk)

    def _make_ready(self, talk):
        (self._ready_slow if talk.slow else self._ready).append(talk)

    # Whatever goes wrong in a part of a conversation, it ends and the others go on.

    def _give_up(self, talk, problem):
        """An unexpected error came up in this conversation."""
        self.report(problem)
        if talk.exchange is not None:
            self._land(talk.exchange)
        self._end(talk, None, NodeError(UNEXPECTED))

    def _tell(self, talk, step, argument):
        try:
            self._step(talk, step, argument)
        except Exception as problem:
            self._give_up(talk, problem)

    def _step(self, talk, step, argument):
        """Let a conversation go one step: it has a request, or it ends."""
        try:
            talk.request = step(argument)
            self._make_ready(talk)
        except StopIteration as end:
            self._end(talk, end.value, None)
        except (NodeError, WireError) as error:
            self._end(talk, None, error)

    def _end(self, talk, result, error):
        if talk.done is None:
            return  # it has ended, and what failed came after that
        if self._limit < self.places:
            self._limit += 1
        done, talk.done = talk.done, None
        try:
            done(result, error)
        except Exception as problem:
            self.report(problem)

    def _launch_all(self, now):
        """Begin the exchanges of all talks that have a request."""
        talks, self._ready, self._ready_slow = self._ready + self._ready_slow, [], []
        for talk in talks:
            try:
                self._launch(talk, now)
            except Exception as problem:
                self._give_up(talk, problem)
        self._advance_all([talk.exchange for talk in talks if talk.exchange is not None])

    def _launch(self, talk, now):
        """Make an exchange.  Without a free descriptor the talk is parked: that says nothing about the node."""
        try:
            talk.exchange = exchange = Exchange(talk, self._tls, now + EXCHANGE_TIME)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                (self._urgent_slow if talk.slow else self._urgent).appendleft(talk)
                self._limit, self._starved_until = max(1, len(self._quick) + len(self._slow)), now + STARVED_TIME
            else:
                self._step(talk, talk.steps.throw, NodeError(connection_error(error)))
        except NodeError as error:
            self._step(talk, talk.steps.throw, error)
        else:
            (self._slow if talk.slow else self._quick)[exchange] = None

    def _advance_all(self, exchanges):
        """Let these exchanges go on, and land those that are over then."""
        over = []
        for exchange in exchanges:
            try:
                if self._advance(exchange):
                    over.append(exchange)
            except Exception as problem:
                self._give_up(exchange.talk, problem)
        self._land_all(over)

    def _advance(self, exchange):
        """Let an exchange go on.  Whether it is over: then it has a message or an error."""
        try:
            events = exchange.advance()
            if events:
                self._watch.watch(exchange, events)
                return False
        except NodeError as error:
            exchange.error = error
        except OSError as error:
            exchange.error = NodeError(connection_error(error))
        return True

    def _land_all(self, exchanges):
        """These exchanges are over: give their places back, and tell their conversations."""
        for exchange in exchanges:
            self._land(exchange)
        for exchange in exchanges:
            talk = exchange.talk
            if exchange.error is None:
                talk.slow = False
                self._tell(talk, talk.steps.send, exchange.message)
            else:  # the conversation may know what to do
                self._tell(talk, talk.steps.throw, exchange.error)

    def _land(self, exchange):
        """Give the place of an exchange back.  Raises nothing: its conversation has to be told next."""
        self._quick.pop(exchange, None)
        self._slow.pop(exchange, None)
        exchange.talk.exchange = None
        try:
            self._watch.forget(exchange)
            exchange.close()
        except Exception as error:
            self.report(error)

    def _expire(self, now):
        """Give up exchanges that were not answered in time, and count as slow those that last."""
        while self._slow:
            exchange = next(iter(self._slow))
            if exchange.expires > now:
                break
            exchange.error = NodeError(NO_ANSWER)
            self._land_all([exchange])
        while self._quick:
            exchange = next(iter(self._quick))
            if self._ages(exchange) > now:
                break
            if len(self._slow) < self._limit - self._limit // 4:
                del self._quick[exchange]
                self._slow[exchange] = None
            else:
                self._land(exchange)
                self._aside.append(exchange.talk)

    def finish(self):
        for exchange in itertools.chain(list(self._quick), list(self._slow)):
            self._land(exchange)
            exchange.talk.steps.close()
        self._watch.close()
        self._wakeup.close()


# ---------------------------------------------------------------------------------------------------------------------
# Discovery: listener and announcer
# ---------------------------------------------------------------------------------------------------------------------

class InfoPort:
    """One info port, UDP and TCP: both are held or none is, UDP is taken first, and both are given up together.

    A dispy client takes UDP first too, and tries again for ever; its TCP port it tries to take once.  So a client that
    has got UDP must find TCP free.  Run by the listener's thread alone.
    """

    def __init__(self, port, addresses, shared, take_up, give_up):
        self.port = port
        self.state = 'off'           # 'held', 'resting' (free for a while), 'left to a client'
        self._addresses = addresses  # where TCP is bound; UDP has to be bound to the wildcard to keep clients off
        self._shared = shared        # taken in turns with clients; else it is held all the time
        self._take_up, self._give_up = take_up, give_up  # called with (socket) when it begins and ends to be used
        self._sockets = []
        self.next_turn = 0.0         # monotonic time of the next change

    def turn(self, now):
        """Change what is to be changed by now; True when the port has just been taken."""
        if now < self.next_turn:
            return False
        if self.state == 'held':
            if self._shared:
                self.close('resting', now + REST_TIME)
            else:
                self.next_turn = float('inf')
            return False
        try:
            self.open()
        except OSError as error:
            self.state, self.next_turn = 'left to a client', now + RETRY_TIME
            logger.debug('info port %d is left to another program: %s', self.port, error)
            return False
        self.state, self.next_turn = 'held', now + HOLD_TIME
        return True

    def open(self):
        """Take the port; OSError when any part of it is taken."""
        sockets = []
        try:
            for kind, addresses in ((socket.SOCK_DGRAM, wildcards()), (socket.SOCK_STREAM, self._addresses)):
                for address in addresses:
                    sockets.append(open_socket(kind, address, self.port))
        except OSError:
            for sock in sockets:
                sock.close()
            raise
        self._sockets = sockets
        for sock in sockets:
            self._take_up(sock)

    def datagram_sockets(self):
        return [sock for sock in self._sockets if hears_datagrams(sock)]

    def close(self, state='off', next_turn=float('inf')):
        """Give the port up, TCP first."""
        for sock in reversed(self._sockets):
            self._give_up(sock)
            sock.close()
        self._sockets = []
        self.state, self.next_turn = state, next_turn


def hears_datagrams(sock):
    """Whether this is a UDP socket (sock.type does not say: Python 3.6 mixes flags into it)."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_DGRAM


def wildcards():
    """The addresses that stand for all of this machine's."""
    return ('0.0.0.0', '::') if has_ipv6() else ('0.0.0.0',)


def has_ipv6():
    """Whether IPv6 sockets can be bound here (it may be compiled in and switched off)."""
    if not socket.has_ipv6:
        return False
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
        return os.path.exists('/proc/net/if_inet6') or not sys.platform.startswith('linux')
    except OSError:
        return False


class Inbound(Channel):
    """A connection that a node has opened to tell of itself: one message, no reply."""

    def __init__(self, sock, address, tls, expires):
        sock.setblocking(False)
        super().__init__(sock, self._begin if tls else self.receive, expires)
        self.address = address
        self._tls = tls

    def _begin(self):
        self.sock.getpeername()  # OSError when it is gone already: wrapping it then would leave it open
        self.sock = self._tls.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        self.step = lambda: self.handshake(self.receive)


class Listener(Worker):
    """Hears nodes: datagrams on the info ports, and connections on these and on a port of its own.

    `hear(address, announcement, connected)` is called for each announcement, on this thread; `port_taken()` when an
    info port has been taken, so that what was missed can be asked for.
    """

    name = 'listener'

    def __init__(self, hosts, info_ports, shared, places, tls=None, clock=time.monotonic):
        super().__init__()
        self.hear = lambda address, announcement, connected: None  # set by Admin
        self.port_taken = lambda: None                             # set by Admin
        self._shared = shared      # info ports are taken in turns with dispy clients
        self._places = places      # connections at one time
        self._tls = tls
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._wakeup = Wakeup()
        self._selector.register(self._wakeup.reader, selectors.EVENT_READ, self._wakeup.clear)
        self._inbound = collections.OrderedDict()  # Inbound -> None, by deadline
        self._groups = set()                       # (group, address, index) to be joined; replaced whole by hear_groups()
        self._joined = {}                          # socket -> groups that it has joined
        self._complained = set()                   # addresses whose bad messages were logged, this hour
        self._complained_since = clock()
        addresses = hosts or wildcards()
        self.info_ports = [InfoPort(port, addresses, shared, self._take_up, self._give_up) for port in info_ports]
        self._own = []             # listening sockets of our own, all with one port
        try:
            self._open_own(addresses)
            for info_port in () if shared else self.info_ports:
                self._hold(info_port)
        except StartError:
            self.finish()
            raise
        self.own_port = self._own[0].getsockname()[1]

    def _open_own(self, addresses):
        """Listen on one free port at all these addresses."""
        for attempt in range(20):
            try:
                for address in addresses:
                    port = self._own[0].getsockname()[1] if self._own else 0
                    self._own.append(open_socket(socket.SOCK_STREAM, address, port))
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or attempt == 19:  # free at one address, the port may be taken at another
                    raise StartError('--host %s: cannot listen there: %s' % (', '.join(addresses), error.strerror))
                while self._own:
                    self._own.pop().close()
        for sock in self._own:
            self._take_up(sock)

    def _hold(self, info_port):
        try:
            info_port.open()
        except OSError as error:
            raise StartError('--info_port %d: %s; give another port, or none (then it is shared with dispy clients)'
                             % (info_port.port, error.strerror))
        info_port.state, info_port.next_turn = 'held', float('inf')

    # --- any thread ---

    def reply_port(self, node_port):
        """Where nodes are to answer: the info port that belongs to their node port while it is held, else our own."""
        pair = dict((node, info) for info, node in PORT_PAIRS).get(node_port)
        held = [p.port for p in self.info_ports if p.state == 'held']
        return pair if pair in held else held[0] if held and not self._shared else self.own_port

    def deaf(self):
        """Whether announcements are missed now."""
        return not self.info_ports or any(p.state != 'held' for p in self.info_ports)

    def hear_groups(self, groups):
        """Hear these multicast groups: a set of (group, address, interface index)."""
        self._groups = groups
        self.wake()

    def wake(self):
        self._wakeup.set()

    # --- this thread ---

    def turn(self):
        now = self._clock()
        for info_port in self.info_ports:
            if info_port.turn(now):
                self._join_groups()
                self.port_taken()
        for key, _ in self._selector.select(self._patience(now)):
            key.data()
        self._join_groups()
        self._expire(self._clock())

    def _patience(self, now):
        times = [60.0] + [p.next_turn - now for p in self.info_ports]
        if self._inbound:
            times.append(next(iter(self._inbound)).expires - now)
        return max(0.0, min(times))

    def _take_up(self, sock):
        read = self._read_datagrams if hears_datagrams(sock) else self._accept
        self._selector.register(sock, selectors.EVENT_READ, lambda: read(sock))

    def _give_up(self, sock):
        self._selector.unregister(sock)
        self._joined.pop(sock, None)

    def _read_datagrams(self, sock):
        for _ in range(256):  # then let connections have their turn
            try:
                data, sender = sock.recvfrom(MAX_DATAGRAM + 1)
            except BlockingIOError:
                return
            self._understand(data, peer_address(sender), False)

    def _accept(self, sock):
        for _ in range(256):
            if len(self._inbound) >= self._places:
                self._drop(next(iter(self._inbound)))  # the oldest has had its chance
            try:
                connection, sender = sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self.report_once('a node that connected cannot be heard: %s' % error)
                self.stopping.wait(0.05)  # no descriptors: some are free again in a moment
                return
            inbound = Inbound(connection, peer_address(sender), self._tls, self._clock() + EXCHANGE_TIME)
            self._inbound[inbound] = None
            self._advance(inbound)

    def _advance(self, inbound):
        if inbound not in self._inbound:
            return  # it was dropped for another since the selector told of it
        try:
            events = inbound.advance()
            if events:
                if not inbound.events:
                    self._selector.register(inbound.sock, events, lambda: self._advance(inbound))
                elif inbound.events != events:
                    self._selector.modify(inbound.sock, events, lambda: self._advance(inbound))
                inbound.events = events
                return
        except (ssl.SSLError, NodeError) as error:
            self._complain(inbound.address, error)
        except OSError as error:
            logger.debug('%s connected and went: %s', inbound.address, error)
        self._drop(inbound)
        if inbound.message is not None:
            self._understand(inbound.message, inbound.address, True)

    def _drop(self, inbound):
        self._inbound.pop(inbound, None)
        if inbound.events:
            self._selector.unregister(inbound.sock)
            inbound.events = 0
        inbound.close()

    def _expire(self, now):
        while self._inbound and next(iter(self._inbound)).expires <= now:
            self._drop(next(iter(self._inbound)))

    def _understand(self, message, address, connected):
        try:
            announcement = read_announcement(message) if len(message) <= MAX_MESSAGE else None
        except WireError as error:
            self._complain(address, error)
            return
        if announcement is not None:
            self.hear(address, announcement, connected)

    def _complain(self, address, error):
        """Log what is wrong with a sender's message, once for each sender."""
        if self._clock() - self._complained_since > 3600:
            self._complained, self._complained_since = set(), self._clock()
        if address in self._complained or len(self._complained) > MAX_COMPLAINTS:
            return
        self._complained.add(address)
        if len(self._complained) > MAX_COMPLAINTS:
            logger.warning('more senders send what no dispynode sends; no further ones are named for an hour')
        else:
            logger.warning('%s sends what no dispynode sends (said once an hour): %s', address, error)

    def _join_groups(self):
        for info_port in self.info_ports:
            for sock in info_port.datagram_sockets():
                wanted = {g for g in self._groups if family_of(g[0]) == sock.family}
                joined = self._joined.setdefault(sock, set())
                for group in joined - wanted:
                    self._membership(sock, group, False)
                    joined.discard(group)
                joined |= {group for group in wanted - joined if self._membership(sock, group, True)}

    @staticmethod
    def _membership(sock, group, join):
        """Join a group, or leave it; False when that cannot be: the interface has just come or gone."""
        group, address, index = group
        try:
            if sock.family == socket.AF_INET6:
                option = socket.IPV6_JOIN_GROUP if join else socket.IPV6_LEAVE_GROUP
                sock.setsockopt(socket.IPPROTO_IPV6, option,
                                socket.inet_pton(socket.AF_INET6, group) + struct.pack('@I', index))
            else:
                option = socket.IP_ADD_MEMBERSHIP if join else socket.IP_DROP_MEMBERSHIP
                sock.setsockopt(socket.IPPROTO_IP, option, socket.inet_aton(group) + socket.inet_aton(address))
            return True
        except OSError as error:
            logger.debug('group %s on %s: %s', group, address, error)
            return join and error.errno == errno.EADDRINUSE  # joined already

    def finish(self):
        for info_port in self.info_ports:
            info_port.close()
        for inbound in list(self._inbound):
            self._drop(inbound)
        for sock in self._own:
            sock.close()
        self._selector.close()
        self._wakeup.close()


class Announcer(Worker):
    """Asks for nodes: at start, at each ping interval, on demand, when an info port was taken, when an address is new.

    One datagram for each release from each of our addresses, since a node answers only to its own release.
    """

    name = 'announcer'

    def __init__(self, sign, hosts, node_ports, ping_interval, multicast, listener, clock=time.monotonic):
        super().__init__()
        self._sign = sign
        self._hosts = hosts
        self._node_ports = node_ports
        self._ping_interval = ping_interval
        self._multicast = multicast
        self._listener = listener
        self._clock = clock
        self._wanted = threading.Event()           # ask now
        self._all = False                          # ask those too that have been asked before; any thread sets it
        self._lock = threading.Lock()              # guards _releases, which the listener's thread adds to
        self._releases = list(DISPY_RELEASES)
        self.sources = local_sources(hosts, multicast)  # replaced whole, by this thread
        self._last = float('-inf')                 # monotonic time of the last asking
        self._times = 0                            # how often it was asked
        self._failed = {}                          # (address, target) -> the error that was logged

    # --- any thread ---

    def scan(self, all_nodes=False):
        """Ask soon.  A node does not answer a sign that has opened it; with `all_nodes` it is asked under a new one, so that
        forgotten nodes come back."""
        self._all = self._all or all_nodes
        self._wanted.set()

    def release_heard(self, release):
        """A node of this release exists: ask for all others of it, if that is news."""
        with self._lock:
            if release in self._releases or len(self._releases) >= MAX_RELEASES:
                return
            self._releases.append(release)
        logger.info('dispy %s is heard for the first time; asking for its nodes', release)
        self.scan()

    def wake(self):
        self._wanted.set()

    # --- this thread ---

    def turn(self):
        before = self.sources
        self.sources = local_sources(self._hosts, self._multicast)
        self._listener.hear_groups({(GROUP_V6 if ':' in source.address else GROUP_V4, source.address, source.index)
                                    for source in self.sources})
        if self._wanted.is_set() or self._clock() >= self._due() or set(self.sources) - set(before):
            self._wanted.clear()
            self._last, self._times = self._clock(), self._times + 1
            sign, self._all = secrets.token_hex(20) if self._all else self._sign, False
            for source in self.sources:
                self._ask_from(source, sign)
            self.stopping.wait(1.0)  # demands that come close together are one
        if self.stopping.is_set():
            return  # that this was told may have been cleared above
        self._wanted.wait(min(WATCH_INTERVAL, max(0.0, self._due() - self._clock())))

    def _due(self):
        """When nodes are to be asked for next (monotonic time)."""
        interval = min(self._ping_interval, DEAF_PING_INTERVAL) if self._listener.deaf() else self._ping_interval
        return self._last + min(interval, EARLY_PINGS.get(self._times, interval))

    def _ask_from(self, source, sign):
        with self._lock:
            releases = list(self._releases)
        for target in source.targets:
            try:
                with self._open(source) as sock:
                    for node_port in self._node_ports:
                        ask = {'ip_addr': source.address.partition('%')[0], 'sign': sign,
                               'port': self._listener.reply_port(node_port)}
                        for release in releases:
                            message = write_message(b'NODE_INFO:', dict(ask, version=release))
                            sock.sendto(message, socket_address(target, node_port))
                self._failed.pop((source.address, target), None)
            except (OSError, NodeError) as error:
                if self._failed.get((source.address, target)) != str(error):
                    self._failed[source.address, target] = str(error)
                    logger.warning('cannot ask for nodes from %s at %s: %s', source.address, target, error)

    @staticmethod
    def _open(source):
        """A socket that sends from this address, hence out of its interface."""
        family = family_of(source.address)
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOPS)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, source.index)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, HOPS)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source.address))
            sock.bind(socket_address(source.address, 0))
            return sock
        except BaseException:
            sock.close()
            raise


# ---------------------------------------------------------------------------------------------------------------------
# Polling: when each node is due
# ---------------------------------------------------------------------------------------------------------------------

class _Due:
    """When a node is to be asked next."""

    __slots__ = ('turn', 'failures', 'asking', 'again', 'beat', 'nudged')

    def __init__(self):
        self.turn = None      # the heap entry that counts; older ones of the same node are stale
        self.failures = 0     # since its last answer
        self.asking = False   # an exchange is under way
        self.again = False    # it is to be asked again as soon as that is over
        self.nudged = float('-inf')  # when it was, or will be, asked because of an announcement (monotonic time)
        self.beat = None      # monotonic time of its next regular turn: it keeps its place within the interval


class Schedule:
    """When each node is to be asked next.  Nodes that failed last are kept apart, and are asked with growing pauses.

    Its lock guards everything in it; any thread may call.  Times are monotonic, so steps of the clock do not matter,
    and a time missed while the machine slept is made up for once.
    """

    def __init__(self, interval, clock=time.monotonic, rand=random.random):
        self._interval = interval
        self._clock = clock
        self._rand = rand
        self.earlier = lambda: None       # set by Admin: called when a node is due before all others
        self._lock = threading.Lock()
        self._nodes = {}                  # id -> _Due
        self._well, self._failing = [], []  # heaps of (monotonic time, number, id)
        self._numbers = itertools.count()

    def add(self, node_id):
        """Ask this node from now on, first at once."""
        with self._lock:
            if node_id not in self._nodes:
                self._nodes[node_id] = _Due()
                self._put(node_id, self._clock())

    def add_answered(self, node_id):
        """Ask this node from now on; it has just answered."""
        with self._lock:
            entry = self._nodes.setdefault(node_id, _Due())
            if not entry.asking:
                self._next(node_id, entry, True)

    def remove(self, node_id):
        """Ask it no more."""
        with self._lock:
            self._nodes.pop(node_id, None)

    def ask_now(self, node_id):
        """Ask it at once, or once more if it is being asked."""
        with self._lock:
            entry = self._nodes.get(node_id)
            if entry is None:
                return
            if entry.asking:
                entry.again = True
            else:
                self._put(node_id, self._clock())

    def ask_soon(self, node_id):
        """Ask it at once, but not more than once a second, nor so often while it fails: anybody can make us call this."""
        with self._lock:
            entry = self._nodes.get(node_id)
            now = self._clock()
            if entry is not None and not entry.asking and entry.nudged <= now:
                entry.nudged = max(now, entry.nudged + min(2.0 ** entry.failures, 16.0))
                self._put(node_id, entry.nudged)

    def ask_in(self, node_id, seconds):
        """Ask it in so many seconds or a tick later, unless it is being asked."""
        with self._lock:
            entry = self._nodes.get(node_id)
            if entry is not None and not entry.asking:
                self._put(node_id, self._clock() + seconds + self.tick)

    @property
    def interval(self):
        """Seconds between two polls of a node."""
        return self._interval

    @interval.setter
    def interval(self, seconds):
        with self._lock:
            self._interval = seconds
            for node_id, entry in self._nodes.items():
                entry.beat = self._clock() + seconds * self._rand()
                if entry.turn and not entry.failures:
                    self._put(node_id, entry.beat)

    @property
    def tick(self):
        """Seconds within which polls begin together."""
        rate = max(1, len(self._nodes)) / self._interval
        return min(max(LEAST_TICK, min(LONGEST_TICK, TICK_POLLS / rate)), self._interval / 2)

    def take(self, now, room, slow_room):
        """(ids of nodes that are due by `now`, ids of failing nodes that are), at most so many; finished() follows for each."""
        with self._lock:
            return self._take(self._well, now, room), self._take(self._failing, now, slow_room)

    def _take(self, heap, now, room):
        taken = []
        while heap and len(taken) < room and heap[0][0] <= now:
            turn = heapq.heappop(heap)
            entry = self._nodes.get(turn[2])
            if entry is not None and entry.turn is turn:
                entry.turn, entry.asking, entry.again = None, True, False
                taken.append(turn[2])
        return taken

    def next_look(self):
        """When to take again (monotonic time), unless earlier() is called before."""
        with self._lock:
            due = min((heap[0][0] for heap in (self._well, self._failing) if heap), default=math.inf)
            return max(due, self._clock() + self.tick)

    def finished(self, node_id, ok):
        """A node that was taken has answered, or not."""
        with self._lock:
            entry = self._nodes.get(node_id)
            if entry is not None:
                entry.asking = False
                self._next(node_id, entry, ok)

    def _next(self, node_id, entry, ok):
        """Lock held."""
        now = self._clock()
        entry.failures = 0 if ok else entry.failures + 1
        if entry.again:
            self._put(node_id, now)
        elif not ok:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(entry.failures - 1, 10))
            self._put(node_id, now + pause)
        else:
            late = None if entry.beat is None else now - entry.beat
            if late is None:  # its place: nodes that were found together are spread over the interval
                entry.beat = now + self._interval * self._rand()
            elif late >= self._interval:  # the program stood still: on with its place, but not at once again
                entry.beat += self._interval * math.ceil(late / self._interval + 0.5)
            elif late >= -min(2 * self.tick, self._interval / 2):  # this was its turn, maybe taken a little early
                entry.beat += self._interval
            self._put(node_id, entry.beat)

    def _put(self, node_id, due):
        """Lock held."""
        entry = self._nodes[node_id]
        entry.turn = due, next(self._numbers), node_id
        heap = self._failing if entry.failures else self._well
        heapq.heappush(heap, entry.turn)
        if heap[0] is entry.turn:
            self.earlier()
        if len(heap) > 100 + 4 * len(self._nodes):  # mostly stale entries: the interval was changed again and again
            heap[:] = [e.turn for e in self._nodes.values() if e.turn and bool(e.failures) == (heap is self._failing)]
            heapq.heapify(heap)


# ---------------------------------------------------------------------------------------------------------------------
# Admin: the operations
# ---------------------------------------------------------------------------------------------------------------------

class Latch:
    """Collects the results of many conversations.  The poller's thread puts, the one that asked waits."""

    def __init__(self, count):
        self._missing = count
        self._results = {}
        self._changed = threading.Condition()  # guards both

    def put(self, key, result):
        """One is over; its result is a dict, or None when there is nothing to say of it."""
        with self._changed:
            self._missing -= 1
            self._results[key] = result
            self._changed.notify()

    def cancel(self):
        """Wait no longer."""
        with self._changed:
            self._missing = 0
            self._changed.notify()

    def wait(self, seconds):
        """{key: result}, when all are there or the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: self._missing <= 0, seconds)
            return dict(self._results)


# How long an operation on many nodes may take before it is answered without those that are missing, in seconds.  Each
# conversation of a control has up to four exchanges; 5,000 dead nodes at the 384 places for slow ones take 52 s.
OPERATION_TIME = 120.0

LATE = 'No outcome yet after %d seconds; look again later.' % OPERATION_TIME
UNKNOWN_NODE = 'It is not in the table of nodes; it may have been forgotten meanwhile.'

CONTROLS = {'start': 'start_time', 'stop': 'stop_time', 'end': 'end_time'}
CLOCK = re.compile(r'([01]?[0-9]|2[0-3]):[0-5][0-9]\Z')


# Seen with dispy 4.11.0 and 4.15.2, whether jobs run or not.
ENDS_PROGRAM = '. At that time dispynode ends itself, and has to be started again there.'


class Admin:
    """What the page, the console and scripts may ask for; it starts and stops the threads.  It knows no HTTP.

    Operations wait for their outcome and return results: dicts with `id`, `ok`, `message` and the values now in force.
    They raise InputError for values that cannot be, before any node is asked.
    """

    def __init__(self, settings):
        files = allow_many_files()
        client_tls, server_tls = (tls_contexts(settings.certfile, settings.keyfile) if settings.certfile
                                  else (None, None))
        self.settings = settings
        self.server_tls = server_tls
        self.sign = secrets.token_hex(20)
        self._request = write_message(b'NODE_INFO:', {'sign': self.sign})
        self.node_ports = [settings.node_port] if settings.node_port else [node for _, node in PORT_PAIRS]
        self.table = NodeTable()
        self.schedule = Schedule(settings.poll_interval)
        shared = settings.info_port is None
        info_ports = [info for info, _ in PORT_PAIRS] if shared else [settings.info_port] if settings.info_port else []
        hosts = own_addresses(settings.hosts)
        self.listener = Listener(hosts, info_ports, shared, max(16, min(512, files // 8)), server_tls)
        self.poller = Poller(max(16, min(1024, files // 2)), client_tls)
        self.announcer = Announcer(self.sign, hosts, self.node_ports, settings.ping_interval,
                                   settings.ipv4_udp_multicast, self.listener)
        self.seeker = Seeker(settings.nodes, self)
        self._workers = (self.poller, self.listener, self.announcer, self.seeker)
        self._secrets = ['']       # tried in this order; it only grows, so that a node's `tried` stays true
        if settings.secret:
            self._secrets.append(settings.secret)
        self._lock = threading.Lock()  # guards _secrets while it grows, and those below
        self._latches = set()          # those that somebody waits for
        self._meeting = set()          # ids of new addresses that are being asked or wait for it
        self._met_each = collections.Counter()  # how many there were at each address, of each id, in the present minute
        self._minute = 0.0             # monotonic time at which that began
        self._changed_aliases = {}     # id -> other addresses of that node which announced another sign
        self._own = (0.0, frozenset())  # (monotonic time, addresses of this machine)
        self.poller.take_due, self.poller.next_look = self._due_talks, self.schedule.next_look
        self.schedule.earlier = self.poller.wake
        self.listener.hear, self.listener.port_taken = self._heard, self.announcer.scan

    def start(self):
        """Start the threads."""
        self.announcer.scan()
        for worker in self._workers:
            worker.start()

    def end(self):
        """Ask the threads to end; operations under way are answered with what there is."""
        for worker in self._workers:
            worker.end()
        with self._lock:
            latches = list(self._latches)
        for latch in latches:
            latch.cancel()

    def join(self, deadline):
        """Wait until the threads have ended, or until this monotonic time."""
        for worker in self._workers:
            worker.join(deadline)

    def discard(self):
        """Give everything up before start()."""
        self.listener.finish()
        self.poller.finish()

    # --- for readers ---

    def snapshot(self, since=None):
        """The nodes that have changed after sequence number `since` (see NodeTable.snapshot)."""
        return self.table.snapshot(since)

    def node(self, node_id):
        """The Published of a node; UnknownNode."""
        published = self.table.get(node_id)
        if published is None:
            raise UnknownNode('%s is not in the table of nodes' % printable(node_id)[:80])
        return published

    def about(self):
        """What this program listens on and asks, as a dict."""
        return {'version': __version__, 'hosts': self.settings.hosts, 'node_ports': self.node_ports,
                'info_ports': [{'port': p.port, 'state': p.state} for p in self.listener.info_ports],
                'own_port': self.listener.own_port,
                'asks': [{'address': source.address, 'to': target}
                         for source in self.announcer.sources for target in source.targets],
                'poll_interval': self.schedule.interval, 'ping_interval': self.settings.ping_interval,
                'secrets': len(self._secrets) - 1, 'tls': self.server_tls is not None,
                'multicast': self.settings.ipv4_udp_multicast}

    # --- operations ---

    def scan(self):
        """Ask for nodes on every interface, soon: forgotten ones too."""
        self.announcer.scan(all_nodes=True)

    def set_interval(self, seconds, least=LEAST_PAGE_INTERVAL):
        """Poll each node every so many seconds."""
        if type(seconds) not in (int, float) or not least <= seconds <= MOST_INTERVAL:
            raise InputError('interval: must be a number of seconds from %d to %d' % (least, MOST_INTERVAL))
        self.schedule.interval = seconds
        logger.info('poll interval is %g seconds now', seconds)
        return seconds

    def poll(self, ids=None):
        """Ask these nodes (or all) right away, and say what each is now."""
        def describe(node_id, _, error):
            published = self.table.get(node_id)
            if error or not published:
                return failure(node_id, 'unreachable', error or 'It has been forgotten.')
            return success(node_id, 'Answers; it is %s.' % published.view['state'])
        return self._ask_each(self.table.ids() if ids is None else ids, self._info_steps, lambda r: r, describe)

    def add(self, host, port=None):
        """Ask this host whether there are dispynodes at this port, or at the usual ones, and list those that answer."""
        ports = [port] if port else self.node_ports
        try:
            places = [(address, number) for address in resolve(host) for number in ports]
        except NodeError as error:
            return [failure(format_id(host, ports[0]), 'unreachable', error)]
        latch = Latch(len(places))
        for place in places:
            self._add_place(place, latch)
        found = self._wait(latch)
        results = [found[place] for place in places if place in found]
        return [r for r in results if r['ok']] or results[:1] or [failure(host, 'unreachable', LATE)]

    def _add_place(self, place, latch):
        node_id = format_id(*place)

        def done(answer, error):
            result = failure(node_id, 'unreachable', error or UNEXPECTED)
            try:
                if error:
                    self._lost(node_id, error)
                else:
                    self._answered(node_id, answer, create=True)
                    result = self._found(node_id, answer)
            finally:
                latch.put(place, result)
        self.poller.submit(self._talk(node_id, self._info_steps(node_id), done))

    def _found(self, node_id, answer):
        """The result of adding a node: of the row that it is in now."""
        row = node_id if node_id in self.table else self.table.owner(answer.known.sign)
        published = row and self.table.get(row)
        if not published:
            return failure(node_id, 'unreachable', 'It answers, but the table of nodes is full.')
        if row != node_id:
            return success(row, '%s shows the sign of this node: taken as another address of it.' % node_id)
        return success(row, published.view['reason'] or 'Found; it is %s.' % published.view['state'])

    def forget(self, node_id):
        """Remove a row; the node comes back when it shows itself again.  UnknownNode."""
        if not self.table.forget(node_id):
            raise UnknownNode('%s is not in the table of nodes' % printable(node_id)[:80])
        self.schedule.remove(node_id)
        logger.info('%s is forgotten', node_id)

    def add_secret(self, secret):
        """Try a secret, from now on, on nodes that none has opened.  One result for each node that it opens."""
        if not isinstance(secret, str) or not secret:
            raise InputError('secret: must be a text that is not empty')
        try:
            secret.encode('utf-8')
        except UnicodeEncodeError:
            raise InputError('secret: has characters that UTF-8 does not have')
        with self._lock:
            if secret not in self._secrets:
                if len(self._secrets) > MAX_SECRETS:
                    raise InputError('secret: %d secrets are known already, and no more are tried' % MAX_SECRETS)
                self._secrets.append(secret)

        def describe(node_id, _, error):
            published = self.table.get(node_id)
            if error or not published or published.view['state'] == LOCKED:
                return None
            return success(node_id, published.view['reason'] or 'Opened.')
        return self._ask_each(self.table.ids(LOCKED), self._info_steps, lambda r: r, describe)

    def set_cpus(self, ids, cpus):
        """Let dispy use so many CPUs of each node: n of them, all but n (negative), or "all"."""
        if cpus != 'all':
            check_whole('cpus', cpus, -65536, 65536, 'CPUs, or "all"')
        wanted = None if cpus == 'all' else cpus

        def describe(value, view):
            return 'dispy uses %s of %s CPUs.' % (value['cpus'], view['max_cpus'])

        def refuse(view):
            asked = cpus if cpus == 'all' or cpus >= 0 else 'all but %d' % -cpus
            return 'Refused: it has %s CPUs; %s asked.' % (view['max_cpus'], asked)
        return self._control_each(ids, 'cpus', write_message(b'SET_CPUS:', {'cpus': wanted}), describe, refuse)

    def set_service_time(self, ids, control_, time_):
        """Set when nodes take jobs: `control_` is start, stop or end; `time_` is HH:MM of the node's clock, now, or None."""
        if not isinstance(control_, str) or control_ not in CONTROLS:
            raise InputError('control: must be "start", "stop" or "end"')
        if time_ is not None and not (isinstance(time_, str) and (time_ == 'now' or CLOCK.match(time_))):
            raise InputError('time: must be "HH:MM" between 00:00 and 23:59, "now", or null to clear it')
        sent = {None: '0', 'now': None}.get(time_, time_)
        what = '%s time' % control_.capitalize()

        def describe(value, view):
            if time_ is None:
                return '%s cleared.' % what
            at = value.get('service_' + control_)
            past = time_ != 'now' and at is not None and at <= time.time()
            text = '%s is %s%s' % (what, 'now' if time_ == 'now' else time_ + ' by its own clock',
                                   ', which has passed: it counts at once' if past else '')
            return text + (ENDS_PROGRAM if control_ == 'end' else '.')

        def refuse(view):
            if control_ == 'stop':
                return 'Refused: Stop would come after End. Set End later, or clear it, first.'
            return 'Refused: it does not take this %s.' % what
        message = write_message(b'SERVICE_TIME:', {'control': CONTROLS[control_], 'time': sent})
        return self._control_each(ids, 'service_' + control_, message, describe, refuse)

    def set_clients(self, ids, clients):
        """How many more clients each node serves before its program ends: n, 0 for none, -1 without limit."""
        check_whole('clients', clients, -1, 2 ** 31 - 1, 'clients; -1 is without limit')

        def describe(value, view):
            if value['serve'] == 0:
                return 'Takes no more clients.'
            if value['serve'] < 0:
                return 'Serves clients without limit.'
            return 'Serves %d more client%s; then its program ends.' % (value['serve'], 's' * (value['serve'] > 1))
        return self._control_each(ids, 'serve', write_message(b'SERVE_CLIENTS:', {'serve': clients}), describe,
                                  lambda view: 'Refused: it does not take this number of clients.')

    # --- many nodes at once ---

    def _ask_each(self, ids, steps, answer_of, describe, prepare=lambda node_id: None):
        """Run a conversation with each of these nodes, all at the same time; results in the order of `ids`.

        `steps(node_id)` makes the conversation, `answer_of(its result)` is the Answer in it, `describe(node_id, result,
        error)` the result for the one who asked; `prepare(node_id)` may have a result at once.
        """
        ids = list(collections.OrderedDict.fromkeys(ids))
        latch = Latch(len(ids))
        for node_id in ids:
            early = prepare(node_id) if node_id in self.table else failure(node_id, 'unknown', UNKNOWN_NODE)
            if early:
                latch.put(node_id, early)
            else:
                self._ask_one(node_id, steps, answer_of, describe, latch)
        results = self._wait(latch)
        in_order = [results.get(node_id, failure(node_id, 'unreachable', LATE)) for node_id in ids]
        return [result for result in in_order if result is not None]

    def _wait(self, latch):
        """What has come into this latch in OPERATION_TIME, or until everything ends."""
        with self._lock:
            self._latches.add(latch)
        try:
            return latch.wait(0 if self.poller.stopping.is_set() else OPERATION_TIME)
        finally:
            with self._lock:
                self._latches.discard(latch)

    def _ask_one(self, node_id, steps, answer_of, describe, latch):
        before = self.table.get(node_id)
        was_lost = before is not None and before.view['state'] == UNREACHABLE

        def done(outcome, error):
            result = failure(node_id, 'unreachable', UNEXPECTED)
            try:
                if error:
                    self._lost(node_id, error)
                else:
                    answer = answer_of(outcome)
                    if answer is not None:
                        self._answered(node_id, answer)
                if error or was_lost:
                    self.schedule.ask_now(node_id)  # so that its next polls come at the pace of what it is now
                result = describe(node_id, outcome, error)
            finally:
                latch.put(node_id, result)
        self.poller.submit(self._talk(node_id, steps(node_id), done), slow=was_lost)

    def _control_each(self, ids, key, message, describe, refuse):
        """Send a control; `key` is the value that a node that has done it answers with."""
        def prepare(node_id):
            view = self.node(node_id).view
            if view['state'] != UNREACHABLE and not view['controllable']:
                return failure(node_id, _why(view), view['reason'])
            return None

        def steps(node_id):
            return control(self._request, self.table.known(node_id), self._secrets, self._may_send(node_id), message)

        def tell(node_id, outcome, error):
            published = self.table.get(node_id)
            if error or not published:
                return failure(node_id, 'unreachable', error or 'It has been forgotten.')
            value, view = outcome[0], published.view
            if value is NOT_ADMIN:
                return failure(node_id, _why(view), view['reason'] or NO_ADMIN_REASON)
            if value is REFUSED:
                return failure(node_id, 'refused', refuse(view))
            if key not in value or value[key] is None and key in ('cpus', 'serve'):
                return failure(node_id, 'refused', 'Its answer makes no sense; see what it shows now.')
            return success(node_id, describe(value, view), **value)
        return self._ask_each(ids, steps, lambda outcome: outcome[1], tell, prepare)

    # --- conversations ---

    def _talk(self, node_id, steps, done):
        address, port = split_id(node_id)
        return Talk(address, port, steps, done)

    def _may_send(self, node_id):
        return functools.partial(self.table.may_send, node_id)

    def _info_steps(self, node_id):
        return ask_info(self._request, self.table.known(node_id), self._secrets, self._may_send(node_id))

    def _due_talks(self, now, room, slow_room):
        """Polls that are due now.  Poller's thread."""
        well, failing = self.schedule.take(now + self.schedule.tick, room, slow_room)
        return self._poll_talks(well), self._poll_talks(failing)

    def _poll_talks(self, ids):
        talks = []
        for node_id in ids:
            try:
                talks.append(self._poll_talk(node_id))
            except Exception as error:
                self.poller.report(error)
                self.schedule.finished(node_id, False)  # what was taken has to be given back
        return talks

    def _poll_talk(self, node_id):
        return self._talk(node_id, self._info_steps(node_id), functools.partial(self._polled, node_id))

    def _polled(self, node_id, answer, error):
        """A poll is over.  Poller's thread."""
        try:
            if error:
                self._lost(node_id, error)
            else:
                self._answered(node_id, answer)
        finally:
            self.schedule.finished(node_id, error is None)
            if node_id not in self.table:
                self.schedule.remove(node_id)
            if self._changed_aliases:
                self._meet_changed_aliases(node_id)
            if error is None and self.table.is_ending(node_id):
                self.schedule.ask_in(node_id, 0.5)

    def _answered(self, node_id, answer, create=False):
        """Poller's thread."""
        event = self.table.answered(node_id, answer, create)
        if event == ALIAS:
            self.schedule.remove(node_id)
            logger.info('%s shows the sign of %s: taken as another address of that node',
                        node_id, self.table.owner(answer.known.sign))
        elif event is not None:
            logger.info('%s %s', node_id, {FOUND: 'is found', BACK: 'answers again', OPENED: 'is opened',
                                           RESTARTED: 'was started again'}[event])
        if create and node_id in self.table:
            self.schedule.add_answered(node_id)
        if event == RESTARTED:
            self._meet_aliases(node_id)

    def _lost(self, node_id, error):
        """Poller's thread."""
        if self.table.failed(node_id, str(error)) == LOST:
            published = self.table.get(node_id)
            logger.warning('%s is lost: %s', node_id, published.view['reason'] if published else error)
            self._meet_aliases(node_id)

    # --- new addresses ---

    def _heard(self, address, announcement, connected):
        """An announcement came from this address.  Listener's thread."""
        address = self._speaker(address, announcement.ip_addr)
        node_id = format_id(address, announcement.port)
        logger.debug('%s from %s', announcement.tag, node_id)
        if announcement.sign == self.sign:
            return
        verdict, row = self.table.heard(node_id, announcement)
        if verdict == SAME:
            self._release_heard(announcement)
        elif verdict == CHANGED:
            if row != node_id:
                with self._lock:
                    self._changed_aliases.setdefault(row, set()).add(node_id)
            self.schedule.ask_soon(row)
        elif verdict == NEW and announcement.tag != 'TERMINATED':
            self._meet(address, announcement.port, connected, announcement)

    def _release_heard(self, announcement):
        """A node that has answered announces its release: others of it may wait to be asked."""
        if announcement.version:
            self.announcer.release_heard(announcement.version)

    def _speaker(self, address, claimed):
        """The address that an announcement speaks for: where it came from, whatever it says.

        One exception: what comes from this machine may name another address of this machine, since the kernel chooses
        which of them a connection comes from.  Listener's thread.
        """
        try:
            claimed = canonical(claimed or address)
        except ValueError:
            return address
        return claimed if claimed != address and self._is_own(address) and self._is_own(claimed) else address

    def _is_own(self, address):
        if is_loopback(address):
            return True
        now = time.monotonic()
        if now - self._own[0] > WATCH_INTERVAL:
            self._own = now, frozenset(i.address for i in list_interfaces())
        return address in self._own[1]

    def _meet(self, address, port, connected=False, announcement=None):
        """Ask an address that is not in the table what it is, in due time.

        Bounded in all, and for each address in a minute: who forges announcements must not make us knock at all ports.
        """
        node_id = format_id(address, port)
        with self._lock:
            full = len(self._meeting) >= MAX_WAITING * (1 + connected)  # a flood of datagrams keeps no connection out
            now = time.monotonic()
            if now - self._minute > 60 or len(self._met_each) > 8 * MAX_WAITING:
                self._minute, self._met_each = now, collections.Counter()
            if full or node_id in self._meeting or self._met_each[address] >= MAX_MEETINGS or self._met_each[node_id] >= 4:
                return
            self._meeting.add(node_id)
            self._met_each.update((address, node_id))

        def done(answer, error):
            with self._lock:
                self._meeting.discard(node_id)
            if error:
                logger.debug('%s announced itself but cannot be asked: %s', node_id, error)
                self._lost(node_id, error)
                return
            self._answered(node_id, answer, create=True)
            if announcement and self.table.heard(node_id, announcement)[0] == SAME:
                self._release_heard(announcement)
        self.poller.submit_new(self._talk(node_id, self._info_steps(node_id), done), connected)

    def _meet_changed_aliases(self, node_id):
        """Ask those addresses of a node what they are that announced another sign than it.  It has just been asked itself, so
        that a node which was started again is known by the address that it had."""
        with self._lock:
            changed = self._changed_aliases.pop(node_id, ())
        for alias in changed:
            if self.table.drop_aliases(node_id, alias):
                self._meet(*split_id(alias))

    def _meet_aliases(self, node_id):
        """A node was started again or is lost: its other addresses may be nodes of their own now."""
        for alias in self.table.drop_aliases(node_id):
            address, port = split_id(alias)
            self._meet(address, port)


def success(node_id, message, **values):
    """The result of what a node has done; `values` are those now in force there."""
    return dict(values, id=node_id, ok=True, outcome='done', message=message)


def failure(node_id, outcome, message):
    """The result of what did not work.  `outcome` is refused, unreachable, locked, or unknown (no such row)."""
    return dict(id=node_id, ok=False, outcome=outcome, message=str(message))


def _why(view):
    """The outcome of a control at a node that cannot be controlled."""
    return LOCKED if view['state'] == LOCKED else 'refused'


def check_whole(field, value, low, high, unit):
    """InputError unless `value` is a whole number within bounds."""
    if type(value) is not int or not low <= value <= high:
        raise InputError('%s: must be a whole number from %d to %d%s' % (field, low, high, unit and ' ' + unit))


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
        if host not in found and all(is_loopback(address) for address in usable) and not host.startswith('localhost'):
            # Debian gives a machine's own name this address, at which no other machine can be heard
            logger.warning('--host %s is the loopback address %s; every interface is used instead', host, usable[0])
            return []
        result.extend(address for address in usable if address not in result)
    return result


def is_bindable(address):
    """Whether this machine has this address now."""
    try:
        open_socket(socket.SOCK_DGRAM, address, 0).close()
        return True
    except (OSError, NodeError):
        return False


class Seeker(Worker):
    """Looks for the nodes of --node until each has answered once; from then on they are polled like all others.

    A thread of its own, as names may take long to resolve.
    """

    name = 'seeker'

    def __init__(self, places, admin):
        super().__init__()
        self._missing = list(places)  # (host, port or None)
        self._admin = admin
        self._rows = {}               # (host, port) -> ids of rows that stand for it until one has answered
        self._said = set()

    def turn(self):
        self._missing = [place for place in self._missing if not self._seek(*place)]
        self.stopping.wait(LONGEST_PAUSE / 2 if self._missing else None)

    def _seek(self, host, port):
        """Whether there is nothing more to be done for this host."""
        admin = self._admin
        if (host, port) not in self._rows:
            try:
                addresses = resolve(host)
            except NodeError as error:
                if host not in self._said:
                    self._said.add(host)
                    logger.warning('--node %s: %s It is tried again every %d seconds.', host, error, LONGEST_PAUSE / 2)
                return False
            first = addresses[0], port or admin.node_ports[0]
            self._rows[host, port] = node_id = format_id(*first)
            admin.table.add(*first)
            if port and len(addresses) == 1:
                admin.schedule.add(node_id)
                return True
        results = admin.add(host, port)
        found = {r['id'] for r in results if r['ok']}
        row = self._rows[host, port]
        if found and row not in found:
            admin.table.forget(row)  # it stood for a port at which nothing is
        return bool(found)


# ---------------------------------------------------------------------------------------------------------------------
# The page: HTML, CSS and JavaScript, served as they stand
# ---------------------------------------------------------------------------------------------------------------------

DENIED_HTML = '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>dispyadmin</title><h1>dispyadmin</h1><p>'

PAGE_HTML = r'''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>dispyadmin</title>
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' height='16' rx='3.5' fill='%233f51b5'/%3E%3Cg fill='%23fff'%3E%3Crect x='3.5' y='3.5' width='4' height='4' rx='1'/%3E%3Crect x='8.5' y='8.5' width='4' height='4' rx='1'/%3E%3Crect x='3.5' y='8.5' width='4' height='4' rx='1' opacity='.55'/%3E%3Crect x='8.5' y='3.5' width='4' height='4' rx='1' opacity='.55'/%3E%3C/g%3E%3C/svg%3E">
<link rel="stylesheet" href="page.css">
<script src="page.js" defer></script>
</head>
<body>

<!-- One shape for each state, so that colour is never the only sign. -->
<svg class="symbols" width="0" height="0" aria-hidden="true" focusable="false">
  <symbol id="shape-ready" viewBox="0 0 16 16"><circle cx="8" cy="8" r="5.5" fill="currentColor"/></symbol>
  <symbol id="shape-stopped" viewBox="0 0 16 16"><path d="M3.5 3h3.2v10H3.5zM9.3 3h3.2v10H9.3z" fill="currentColor"/></symbol>
  <symbol id="shape-locked" viewBox="0 0 16 16"><path d="M5 7V5.2a3 3 0 0 1 6 0V7" fill="none" stroke="currentColor" stroke-width="1.8"/><rect x="3" y="7" width="10" height="7" rx="1.2" fill="currentColor"/></symbol>
  <symbol id="shape-unreachable" viewBox="0 0 16 16"><path d="M3.5 3.5l9 9m0-9l-9 9" fill="none" stroke="currentColor" stroke-width="2.4" stroke-linecap="round"/></symbol>
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

    <div id="tools" class="tools">
      <label class="filter"><span class="unseen">Filter nodes</span>
        <input id="filter" type="search" placeholder="Filter: address, name, state, reason, version" autocomplete="off" spellcheck="false"></label>
      <span class="sort"><label for="sort-by">Sort by</label>
        <select id="sort-by"></select>
        <button type="button" id="sort-direction" class="quiet" aria-label="Ascending; reverse the order"></button></span>
      <p id="count" class="count"></p>
    </div>

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
    <div id="node-notice" class="notice" hidden><strong></strong> <span></span></div>
    <div id="node-facts" class="facts"></div>
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
      </fieldset>
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
            <input id="secret" type="password" autocomplete="off" autocapitalize="none" spellcheck="false" aria-describedby="secret-hint secret-error"></label>
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
        </div>
        <p id="add-error" class="error" role="alert"></p>
      </form>
    </section>
  </aside>

  <section id="outcome" class="outcome" aria-label="Outcome" hidden>
    <div class="outcome-head">
      <p id="outcome-summary" role="status" aria-live="polite" tabindex="-1"></p>
      <button type="button" id="outcome-dismiss" class="quiet">Dismiss</button>
    </div>
    <ul id="outcome-list"></ul>
    <button type="button" id="outcome-more" hidden></button>
  </section>
</main>

<footer class="foot"><p id="about"></p></footer>

<dialog id="ask" aria-labelledby="ask-title" aria-describedby="ask-text">
  <h2 id="ask-title"></h2>
  <p id="ask-text"></p>
  <div class="line">
    <button type="button" id="ask-no">Cancel</button>
    <button type="button" id="ask-yes" class="danger"></button>
  </div>
</dialog>

<template id="row">
  <tr role="row">
    <td role="cell" class="c-select"><label class="hit"><input type="checkbox"></label></td>
    <th role="rowheader" scope="row" class="c-address" data-col="address"><a></a></th>
    <td role="cell" class="c-name" data-col="name"></td>
    <td role="cell" class="c-state"><span class="state"><svg aria-hidden="true"><use/></svg><span></span></span><span class="why"></span></td>
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

/* ======== Tools above the table ======== */

.tools { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1rem; }
.filter { flex: 1 1 18rem; max-width: 30rem; }
.sort { display: inline-flex; align-items: center; gap: .5rem; }
.sort label { color: var(--muted); white-space: nowrap; }
.sort select { width: auto; }
#sort-direction { width: 2rem; padding: 0; margin-left: -.25rem; }
#sort-direction::before { content: "\2191"; }
#sort-direction[data-direction="descending"]::before { content: "\2193"; }
.count { margin-left: auto; color: var(--muted); }

/* ======== Table ======== */

.viewport { position: relative; max-height: 72vh; overflow: auto; overflow-anchor: none; scroll-padding: 3.5rem 0 1rem; background: var(--surface); border: 1px solid var(--line); border-radius: var(--radius); }
/* So many rows fill it anyway: its size is the window's, and what changes in it moves nothing around it. */
.viewport.full { contain: strict; height: 72vh; }

#nodes {
  --row: 2.125;
  --bare: 2.125;
  --why: 1.25;
  width: 100%;
  min-width: 58.5rem;
  table-layout: fixed;
  border-collapse: separate;
  border-spacing: 0;
  font-size: .8125rem;
}
.w-select { width: 2.25rem; }
.w-address { width: 9.5rem; }
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
.c-address a { font-weight: 500; text-decoration: none; }
.c-address a:hover { text-decoration: underline; }
.c-address a:focus-visible { outline-offset: -1px; }
#rows .c-select, #nodes thead .c-select { padding: 0; }
.hit { display: flex; align-items: center; justify-content: center; min-height: 2rem; cursor: pointer; }
.c-updated { color: var(--muted); }

/* The reason has the row's second line for itself. */
.why { position: absolute; left: 2.625rem; right: .375rem; bottom: .3125rem; overflow: hidden; text-overflow: ellipsis; color: var(--muted); line-height: 1.3; }
.why:empty { display: none; }

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
.notice[data-state="unreachable"] { border-left-color: var(--unreachable); background: var(--unreachable-tint); }

.facts { columns: 2 22rem; column-gap: var(--gap); margin-bottom: calc(-1 * var(--gap)); }
.facts > .panel { break-inside: avoid; margin-bottom: var(--gap); }
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
.node-name, .choices .name, #outcome-list span { unicode-bidi: isolate; }
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
#outcome-list { max-height: 11rem; overflow: auto; margin-top: .25rem; padding: 0; list-style: none; font-size: .8125rem; }
#outcome-list li { position: relative; padding: .125rem .5rem .125rem 1.25rem; overflow-wrap: anywhere; }
#outcome-list li::before { position: absolute; left: 0; content: "\2713"; color: var(--ready); }
#outcome-list li.failed::before { content: "\2715"; color: var(--unreachable); }
#outcome-list b { font-weight: 500; }
#outcome-more { margin: .375rem 0 .25rem; }
.outcome[data-state="working"] .outcome-head::before { content: ""; flex: none; width: .75rem; height: .75rem; border: 2px solid var(--line); border-top-color: var(--accent); border-radius: 50%; animation: turn .9s linear infinite; margin-right: -.375rem; }
.outcome[data-state="working"] .outcome-head { justify-content: flex-start; }
.outcome[data-state="working"] #outcome-dismiss { margin-left: auto; }
@keyframes turn { to { transform: rotate(1turn); } }

/* ======== Question ======== */

dialog { width: min(28rem, calc(100vw - 2rem)); padding: 1.25rem; background: var(--surface); color: var(--text); border: 1px solid var(--line); border-radius: .625rem; box-shadow: var(--shadow); }
dialog::backdrop { background: rgba(14, 18, 30, .45); }
dialog h2 { margin-bottom: .5rem; font-size: 1.0625rem; }
dialog .line { margin-top: 1.125rem; justify-content: flex-end; }

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
  #nodes.some .why:empty { display: none; }
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
    grid-template-columns: 2.5rem minmax(0, 1fr) minmax(0, 1fr) minmax(0, 1fr) minmax(0, 1.15fr);
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
  .freshness { width: 100%; margin: 0; padding-bottom: .5rem; font-size: .75rem; }
  .top nav { margin-left: -.625rem; width: 100%; order: 2; }
  .brand { padding: .625rem 0 0; }
  .by-state { width: 100%; }
  .by-state button { padding: .25rem .5rem; }
  .count { width: 100%; margin: 0; }
  .filter { flex-basis: 100%; max-width: none; }
  .empty { padding: 1rem; }
  .choices li { flex-wrap: wrap; padding-bottom: .25rem; }
  .choices a { flex: 0 1 auto; min-width: 0; }
  .choices .name { order: 3; flex: 0 0 100%; margin-top: -.375rem; }
  .choices .name:empty { display: none; }
  #outcome-list { max-height: 7.5rem; }
}

@media (pointer: coarse) {
  button, input[type="text"], input[type="search"], input[type="number"], input[type="password"], select { min-height: 2.75rem; }
  .check, .hit { min-height: 2.75rem; }
  .hit { min-height: 2rem; }
  input[type="checkbox"] { width: 1.25rem; height: 1.25rem; }
  #sort-direction { width: 2.75rem; }
}

@media (prefers-reduced-motion: reduce) {
  .outcome[data-state="working"] .outcome-head::before { animation: none; }
}

@media (forced-colors: active) {
  #nodes thead [aria-sort] button::after, .state { forced-color-adjust: auto; }
  .bar::after { background: Highlight; }
  .by-state button[aria-pressed="true"] { outline: 2px solid Highlight; }
}

/* ======== Paper ======== */

@media print {
  :root { --ground: #fff; --surface: #fff; --raised: #fff; --line: #bbb; --text: #000; --muted: #444; }
  .controls, .tools, .top nav, .c-select, .w-select, .skip, .outcome, .back { display: none !important; }
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
  const PARALLEL = 4;             // DELETE requests under way at once; browsers allow six connections
  const STATES = ['ready', 'stopped', 'locked', 'unreachable'];
  const DASH = '\u2013';
  const MINUS = '\u2212';

  // ======== Page state ========

  const store = {
    nodes: new Map(),             // id -> record; see Records
    sequence: null,               // of the last reply; null: ask for everything
    totals: null,
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
    state: '',                    // quick filter from the totals
    sort: 'address',
    down: false,
    order: [],                    // every record, sorted
    shown: [],                    // those that the filter lets through
    offsets: new Float64Array(1), // shown[i] starts at offsets[i] pixels
    selected: new Set(),          // ids; survives refresh, sort and filter
    anchor: null,                 // where a shift-click range starts
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
  function asAge(time) {
    if (!isNumber(time)) return DASH;
    const age = Math.max(0, Math.round(now() - time));
    if (age < 120) return age + ' s ago';
    if (age < 7200) return Math.floor(age / 60) + ' m ago';
    return age < 172800 ? Math.floor(age / 3600) + ' h ago' : Math.floor(age / 86400) + ' d ago';
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
    rec.node = node;
  }

  function sameToSearch(a, b) {
    return a.name === b.name && a.state === b.state && a.reason === b.reason && a.version === b.version &&
      String(a.addresses) === String(b.addresses);
  }

  function dropNode(id) {
    store.nodes.delete(id);
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
      rec.text = [node.id, addresses, node.name, node.state, node.reason, node.version].join('\n').toLowerCase();
    }
    return rec.text;
  }

  function passes(rec) {
    if (view.state && rec.node.state !== view.state) return false;
    return view.words.every(function (word) { return searchText(rec).indexOf(word) >= 0; });
  }

  function filterRecords() {
    const all = !view.state && !view.words.length;
    view.shown = all ? view.order.slice() : view.order.filter(passes);
    if (!all) view.order.forEach(function (rec) { rec.at = -1; });
    view.shown.forEach(function (rec, at) { rec.at = at; });
  }

  // ======== Table: geometry ========

  // A locked node that never told anything has no details to show, and on a narrow screen needs less room.
  function isBare(node) {
    return node.cpus === null && node.avail_info === null && node.jobs_done === null;
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
      offsets[i + 1] = offsets[i] + (isBare(node) ? size.bare : size.row) + (node.reason ? size.why : 0);
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
      state: tr.querySelector('.state'), why: tr.querySelector('.why')};
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
    setAttr(row.tr, 'class', node.state + (node.reason ? ' has-why' : '') + (isBare(node) ? ' bare' : ''));
    setState(row.state, node.state);
    setText(row.why, node.reason || '');
    setAttr(row.why, 'title', node.reason || '');
    COLUMNS.forEach(function (column) {
      if (column.text) setText(row.cells[column.key], column.text(node));
    });
    METERS.forEach(function (key) { setShare(row.cells[key], available(node, key)); });
    setAttr(row.cells.name, 'title', node.name || '');
    setAttr(row.link, 'title', (node.addresses || []).concat(node.id).filter(isFirst).join('\n'));
  }

  function isFirst(value, at, all) {
    return all.indexOf(value) === at;
  }

  function paintRow(rec, row) {
    const chosen = view.selected.has(rec.id);
    if (row.node !== rec.node) paintNode(row, rec.node);
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
    const totals = store.totals || {};
    ['nodes'].concat(STATES).forEach(function (key) {
      const button = els['total-' + key];
      setText(button.querySelector('b'), asCount(totals[key] || 0));
      setAttr(button, 'aria-pressed', button.dataset.state === view.state);
    });
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
    if (empty) updateEmpty();
    updateTable();                // asks where the table is scrolled to, which is known while nothing else has changed
    updateTotals();
  }

  function onFilter() {
    view.words = els.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    updateCluster();
  }

  function showState(state) {
    view.state = view.state === state ? '' : state;
    updateCluster();
  }

  function showAll() {
    els.filter.value = '';
    view.state = '';
    onFilter();
    els.filter.focus();
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
    off: 'not listened on; nodes are found by asking instead',
  };

  function waysToFind(about) {
    const ports = (about.info_ports || []).map(function (info) {
      return 'Nodes that announce themselves to port ' + info.port + ': ' + (PORT_STATES[info.state] || info.state) + '.';
    });
    const asks = (about.asks || []).map(function (ask) { return ask.to + ' from ' + ask.address; });
    const every = about.ping_interval ? ', every ' + asDuration(about.ping_interval) : '';
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
    setHidden(els['node-notice'], !node.reason);
    els['node-notice'].dataset.state = node.state;
    setText(els['node-notice'].firstElementChild, node.controllable ? '' : node.state === 'unreachable' ? 'It cannot be controlled now.' : 'It cannot be controlled.');
    setText(els['node-notice'].lastElementChild, node.reason || '');
  }

  function updateNode(node) {
    setText(els['node-title'], node.id);
    setText(els['node-name'], node.name || '');
    setState(els['node-state'], node.state);
    updateNotice(node);
    els.node.classList.toggle('unreachable', node.state === 'unreachable');
    els['node-facts'].classList.toggle('bare', isBare(node));
    facts.forEach(function (fact) {
      setText(fact.dd, fact.text(node));
      if (fact.share) setShare(fact.dd, fact.share(node));
    });
  }

  function choiceWords() {
    return els['choose-filter'].value.toLowerCase().split(/\s+/).filter(Boolean);
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
    const words = choiceWords();
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

  // ======== Controls: what they apply to ========

  function targetIds() {
    const rec = currentRecord();
    if (view.name === 'node') return rec ? [rec.id] : [];
    return Array.from(view.selected);
  }

  function targetRecords() {
    return targetIds().map(function (id) { return store.nodes.get(id); }).filter(Boolean);
  }

  function targetText(count) {
    return count === 1 ? targetIds()[0] : plural(count, 'node');
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

  function updateTarget() {
    const single = view.name === 'node';
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

  const outcome = {lines: [], drawn: 0};

  // A result may name its kind itself; else what is known of the node tells why it failed.
  function kindOf(result) {
    if (result.ok) return 'done';
    if (result.outcome) return String(result.outcome);
    const rec = store.nodes.get(result.id);
    if (!rec) return 'failed';
    const state = rec.node.state;
    return state === 'locked' || state === 'unreachable' ? state : 'refused';
  }

  function tally(lines) {
    const counts = new Map();
    lines.forEach(function (line) { counts.set(line.kind, (counts.get(line.kind) || 0) + 1); });
    const kinds = ['done', 'refused', 'unreachable', 'locked'].filter(function (kind) { return counts.has(kind); });
    counts.forEach(function (count, kind) { if (kinds.indexOf(kind) < 0) kinds.push(kind); });
    return kinds.map(function (kind) { return asCount(counts.get(kind)) + ' ' + kind; }).join(', ');
  }

  function openOutcome(summary, lines, state) {
    outcome.lines = lines;
    outcome.drawn = 0;
    els['outcome-list'].textContent = '';
    setAttr(els['outcome-list'], 'aria-live', lines.length <= READ_OUT ? 'polite' : 'off');
    els.outcome.dataset.state = state;
    setHidden(els.outcome, false);
    setText(els['outcome-summary'], summary);
    drawOutcome();
  }

  function drawOutcome() {
    const upTo = outcome.drawn + LIST_STEP;
    outcome.lines.slice(outcome.drawn, upTo).forEach(function (line) {
      const item = make('li', undefined, line.ok ? 'done' : 'failed');
      item.dataset.id = line.id;
      item.appendChild(make('b', line.id + ':'));
      item.appendChild(make('span', ' ' + line.message));
      els['outcome-list'].appendChild(item);
    });
    outcome.drawn = Math.min(upTo, outcome.lines.length);
    setHidden(els['outcome-list'], !outcome.lines.length);
    setHidden(els['outcome-more'], outcome.drawn === outcome.lines.length);
    setText(els['outcome-more'], 'Show ' + asCount(Math.min(LIST_STEP, outcome.lines.length - outcome.drawn)) + ' more of ' + asCount(outcome.lines.length));
  }

  function showResults(title, results, otherwise) {
    const lines = results.map(function (result) {
      return {id: String(result.id), ok: Boolean(result.ok), kind: kindOf(result), message: String(result.message || (result.ok ? 'done' : 'failed'))};
    });
    lines.sort(function (a, b) { return a.ok - b.ok; });
    const failed = lines.length > 0 && !lines[0].ok;
    openOutcome(title + ': ' + (lines.length ? tally(lines) : otherwise || 'done'), lines, failed ? 'failed' : 'done');
  }

  function closeOutcome() {
    const inside = els.outcome.contains(document.activeElement);
    setHidden(els.outcome, true);
    if (inside) els.main.focus({preventScroll: true});
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
  async function act(form, title, send, otherwise) {
    if (form.dataset.busy) return null;
    form.dataset.busy = 'yes';
    clearError(form);
    openOutcome(title + '\u2026', [], 'working');
    try {
      const reply = await send();
      showResults(title, reply.results || [], reply.message || otherwise);
      return reply;
    } catch (error) {
      setHidden(els.outcome, true);
      if (error.status === 401 || error.status === 403) store.denied = true;
      showError(form, error.message);
      return null;
    } finally {
      delete form.dataset.busy;
      refreshNow();
    }
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
    const ids = targetIds();
    const word = control.charAt(0).toUpperCase() + control.slice(1);
    if (control === 'end' && time !== null && !await askEnd(time)) return;
    const title = (time === null ? 'Clear ' + word : 'Set ' + word + ' to ' + time) + ' on ' + targetText(ids.length);
    const reply = await act(els['service-form'], title, function () {
      return request('POST', 'api/service_time', {nodes: ids, control: control, time: time});
    });
    if (reply) els['service-time'].value = '';
  }

  function askEnd(time) {
    const chosen = targetRecords();
    const recs = chosen.filter(function (rec) { return rec.node.controllable; });
    const others = chosen.length - recs.length;
    const busy = recs.reduce(function (sum, rec) { return sum + (rec.node.busy || 0); }, 0);
    const when = time === 'now' ? 'now' : 'at ' + time + ', by each node\u2019s own clock,';
    const it = recs.length === 1 ? 'this node' : 'these nodes';
    return ask({
      title: 'End running jobs ' + (time === 'now' ? 'now' : 'at ' + time) + '?',
      text: plural(recs.length, 'node') + ' will end all running jobs ' + when + ' and take no more. Their work so far is lost. dispynode itself ends, too, and has to be started again there. ' +
        (time === 'now' ? '' : 'Where that time has passed today, it counts at once. ') +
        (others ? plural(others, 'selected node') + ' cannot be controlled. ' : '') +
        (busy ? plural(busy, 'job') + ' ran' + ' on ' + it + ' at the last count.' : 'No job ran on ' + it + ' at the last count.'),
      yes: time === 'now' ? 'End jobs' : 'Set End',
    });
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
    const ids = targetIds();
    const title = cpus === 'all' ? 'Set all CPUs' : 'Set CPUs to ' + asCount(cpus);
    return act(form, title + ' on ' + targetText(ids.length), function () {
      return request('POST', 'api/cpus', {nodes: ids, cpus: cpus});
    });
  }

  function setClients() {
    const form = els['clients-form'];
    const clients = readInteger(els.clients);
    clearError(form);
    if (clients === null || clients < -1) return showError(form, 'Give a whole number of clients, 0 for none, or \u22121 for no limit.', els.clients);
    return act(form, 'Set clients to ' + asCount(clients) + ' on ' + targetText(1), function () {
      return request('POST', 'api/clients', {nodes: targetIds(), clients: clients});
    });
  }

  // ---- forget

  async function forgetOne(id) {
    try {
      const reply = await request('DELETE', 'api/nodes/' + encodeURIComponent(id));
      return (reply.results || [])[0] || {id: id, ok: true, message: 'forgotten'};
    } catch (error) {
      return {id: id, ok: false, outcome: error.status ? 'refused' : 'failed', message: error.message};
    }
  }

  async function forgetAll(ids, title) {
    const results = [];
    let next = 0;
    const worker = async function () {
      while (next < ids.length) {
        next += 1;
        results.push(await forgetOne(ids[next - 1]));
        if (results.length % 100 === 0) setText(els['outcome-summary'], title + '\u2026 ' + asCount(results.length) + ' done');
      }
    };
    await Promise.all(Array.from({length: PARALLEL}, worker));
    return {results: results};
  }

  async function forget() {
    const ids = targetIds();
    if (!ids.length) return;
    const title = 'Forget ' + targetText(ids.length);
    const reply = await act(els['forget-form'], title, function () { return forgetAll(ids, title); });
    if (!reply) return;
    if (view.name === 'node') go('admin.html');
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

  async function addNode() {
    const form = els['add-form'];
    const host = els['add-host'].value.trim();
    const port = els['add-port'].value.trim();
    clearError(form);
    if (!host) return showError(form, 'Give a host name or an address.', els['add-host']);
    if (port && !(/^\d+$/.test(port) && port >= 1 && port <= 65535)) return showError(form, 'Give a port from 1 to 65535, or leave it empty.', els['add-port']);
    const reply = await act(form, 'Add ' + host, function () {
      return request('POST', 'api/nodes', port ? {host: host, port: Number(port)} : {host: host});
    });
    if (reply && (reply.results || []).some(function (result) { return result.ok; })) form.reset();
    return undefined;
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

  function showSecret() {
    els.secret.type = els['secret-show'].checked ? 'text' : 'password';
  }

  // ======== Question ========

  // Resolves to true or false; Escape and closing mean no.
  function ask(question) {
    const text = question.title + '\n\n' + question.text;
    if (typeof els.ask.showModal !== 'function') return Promise.resolve(window.confirm(text));
    setText(els['ask-title'], question.title);
    setText(els['ask-text'], question.text);
    setText(els['ask-yes'], question.yes);
    els.ask.returnValue = '';
    els.ask.showModal();
    els['ask-no'].focus();
    return new Promise(function (resolve) {
      els.ask.addEventListener('close', function () { resolve(els.ask.returnValue === 'yes'); }, {once: true});
    });
  }

  // ======== Views ========

  function readLocation() {
    const single = /admin_node\.html$/.test(location.pathname);
    view.name = single ? 'node' : 'cluster';
    view.host = single ? new URLSearchParams(location.search).get('host') || '' : '';
  }

  // The token of the link has done its work once the page is there; it need not stay in the history.
  function dropToken() {
    const params = new URLSearchParams(location.search);
    if (!params.has('token')) return;
    params.delete('token');
    const rest = params.toString();
    history.replaceState(null, '', location.pathname + (rest ? '?' + rest : '') + location.hash);
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
    const title = (cluster ? 'Admin Cluster(s)' : rec ? rec.id : 'Admin Node') + ' \u00b7 dispyadmin';
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
    leave();
    history.pushState(null, '', url);
    arrive();
  }

  // A jump within the page (the skip link) is no other view.
  function onHistory() {
    if (location.pathname + location.search === place) return;
    leave();
    arrive();
  }

  // Links are real; only the plain click stays in this page.
  function onLink(event) {
    const link = event.target.closest('a[href^="admin"]');
    if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
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
    on('filter-clear', 'click', showAll);
    on('select-all', 'change', onSelectAll);
    on('rows', 'click', function (event) { if (event.target.type === 'checkbox') onSelectClick(event); });
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
    onSubmit('forget-form', forget);
    onSubmit('poll-form', setPollInterval);
    on('poll-now', 'click', pollNow);
    on('poll-interval', 'input', function () { intervalTyped = els['poll-interval'].value !== ''; });
    onSubmit('scan-form', scan);
    onSubmit('add-form', addNode);
    onSubmit('secret-form', setSecret);
    on('secret-show', 'change', showSecret);
    updateServiceHint();
  }

  function wireRest() {
    on('outcome-dismiss', 'click', closeOutcome);
    on('outcome-more', 'click', drawOutcome);
    on('choose-filter', 'input', updateChooser);
    on('empty-add', 'click', function (event) {
      event.preventDefault();
      els['add-host'].focus();
    });
    on('ask-yes', 'click', function () { els.ask.close('yes'); });
    on('ask-no', 'click', function () { els.ask.close('no'); });
    document.addEventListener('click', onLink);
    document.addEventListener('visibilitychange', onVisibility);
    window.addEventListener('popstate', onHistory);
    window.addEventListener('beforeprint', onPrint);
    window.addEventListener('afterprint', onPrint);
    window.addEventListener('resize', function () {
      sizes = null;
      if (view.name === 'cluster') updateTable();
    });
  }

  function start() {
    Array.from(document.querySelectorAll('[id]')).forEach(function (element) { els[element.id] = element; });
    dropToken();
    wireTable();
    wireControls();
    wireRest();
    buildFacts();
    place = location.pathname + location.search;
    readLocation();
    showSecret();
    update();
    refresh();
  }

  start();
}());
'''


# ---------------------------------------------------------------------------------------------------------------------
# HTTP: server, access, routes, one sender
# ---------------------------------------------------------------------------------------------------------------------

class HttpError(Error):
    """A request that is answered with an error status."""

    def __init__(self, status, sentence, **headers):
        super().__init__(sentence)
        self.status = status
        self.headers = headers


def gzipped(data):
    """`data` as a gzip file.  The fastest level: it makes a tenth of JSON, and slower ones not much less."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


class NodeLister:
    """Nodes as one JSON list, packed for readers far away.  What was packed for one reader serves the others.

    The list is cut into parts behind each change whose number is divisible by PART.  Nodes only ever leave a part, by
    changing again, so that its first and last number and its length tell what is in it.  A gzip file may be made of parts
    that were packed each by itself.
    """

    PART = 256  # changes, and so about as many nodes: 150 KB of JSON
    HEAD = b'\x1f\x8b\x08\0\0\0\0\0\0\xff'  # of a gzip file without name and time (RFC 1952)
    END = b'\x03\x00'  # an empty last block (RFC 1951)

    def __init__(self):
        self._lock = threading.Lock()            # guards what follows
        self._parts = collections.OrderedDict()  # number of the first change -> (key, bytes, the same packed); used last at the end

    def plain(self, head, nodes, tail):
        """`head`, the nodes in JSON with commas between, and `tail`, as bytes."""
        return (head + ','.join([node.json() for node in nodes]) + tail).encode('ascii')

    def packed(self, head, nodes, tail, most):
        """The same as a gzip file; `most` is how many nodes there are in all."""
        pieces = [self._pack(head.encode('ascii'))]
        pieces += [self._part(part, most) for part in self._cut(nodes[:-1])]  # each with a comma behind it
        pieces.append(self._pack((''.join([node.json() for node in nodes[-1:]]) + tail).encode('ascii')))
        check = size = 0
        for plain, _ in pieces:
            check, size = zlib.crc32(plain, check), size + len(plain)
        return b''.join([self.HEAD] + [packed for _, packed in pieces] + [self.END, struct.pack('<LL', check, size)])

    def _cut(self, nodes):
        start = 0
        for end, node in enumerate(nodes, 1):
            if node.sequence % self.PART == 0 or end == len(nodes):
                yield nodes[start:end]
                start = end

    def _part(self, nodes, most):
        """(bytes, the same packed) of a part; two threads may make it at the same moment: they make the same."""
        first, key = nodes[0].sequence, (nodes[-1].sequence, len(nodes))
        with self._lock:
            found = self._parts.get(first)
            if found is not None and found[0] == key:
                self._parts.move_to_end(first)
                return found[1:]
        made = self._pack((','.join([node.json() for node in nodes]) + ',').encode('ascii'))
        with self._lock:
            self._parts[first] = (key,) + made
            self._parts.move_to_end(first)
            while len(self._parts) > 16 + 2 * most // self.PART:
                self._parts.popitem(last=False)
        return made

    @staticmethod
    def _pack(data):
        packer = zlib.compressobj(1, zlib.DEFLATED, -15)
        return data, packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)


class _TimedReader(io.RawIOBase):
    """Reads a request under one deadline for the whole of it, so that a byte a second does not hold a thread."""

    def __init__(self, sock):
        self._sock = sock
        self._expires = None
        self._idle = True
        self._room = MAX_HEAD

    def readable(self):
        return True

    def expect_request(self):
        """The next byte may take IDLE_TIME to come; from then on the request has REQUEST_TIME, and MAX_HEAD bytes."""
        self._expires, self._idle, self._room = time.monotonic() + IDLE_TIME, True, MAX_HEAD

    def expect_body(self, size):
        """So many bytes more."""
        self._room += size

    def readinto(self, buffer):
        if self._room <= 0:
            raise HttpError(431, 'The headers of the request have more than %d bytes' % MAX_HEAD)
        left = self._expires - time.monotonic()
        if left <= 0:
            raise socket.timeout('request took too long')
        self._sock.settimeout(left)
        size = self._sock.recv_into(buffer)
        if self._idle:
            self._expires, self._idle = time.monotonic() + REQUEST_TIME, False
        self._room -= size
        return size


class WebServer(Worker):
    """Accepts connections of browsers and scripts, and gives each a thread of its own, up to `places`."""

    name = 'http'

    def __init__(self, admin, settings, places):
        super().__init__()
        self.admin = admin
        self.lister = NodeLister()
        self.tls = admin.server_tls
        self._places = places
        self._sockets = self._open(settings.http_host, settings.http_port)
        self._wakeup = Wakeup()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup.reader, selectors.EVENT_READ)
        self._lock = threading.Lock()                   # guards _connections
        self._connections = collections.OrderedDict()   # Connection -> its thread; those that asked last at the end
        self._numbers = itertools.count(1)
        self.port = self._sockets[0].getsockname()[1]
        addresses = [peer_address(sock.getsockname()) for sock in self._sockets]
        self.loopback = all(is_loopback(address) for address in addresses)
        self.trusts_kernel = self.loopback and os.path.exists('/proc/net/tcp') and hasattr(os, 'geteuid')
        self.token = settings.http_token or secrets.token_urlsafe(24)
        self.names = {'localhost', settings.http_host.lower().strip('[]')} | {n.lower() for n in settings.http_names}
        self.proxy_names = {name.lower() for name in settings.http_names} - {'localhost'}
        self.show_token = not settings.http_token and (not self.trusts_kernel or bool(settings.http_names))
        for sock in self._sockets:
            self._selector.register(sock, selectors.EVENT_READ, sock)

    @staticmethod
    def _open(host, port):
        """Listening sockets at every address of the host, all with one port."""
        sockets, problem = [], None
        try:
            addresses = resolve(host)
        except NodeError as error:
            raise StartError('--http_host %s: %s' % (printable(host), error))
        for address in addresses:
            try:
                sockets.append(open_socket(socket.SOCK_STREAM, address, port))
                port = sockets[0].getsockname()[1]
            except OSError as error:
                problem = error
                if error.errno == errno.EADDRINUSE:
                    break
            else:
                continue
        if problem is not None and (not sockets or problem.errno == errno.EADDRINUSE):
            for sock in sockets:
                sock.close()
            raise StartError('--http_host %s, --http_port %d: %s%s' % (
                printable(host), port, problem.strerror,
                '; is dispyadmin running already? Give another port' if problem.errno == errno.EADDRINUSE else ''))
        return sockets

    def url(self, host):
        """The address of the page as a user types it, with the token when it has to be told."""
        shown = host
        if shown in ('0.0.0.0', '::'):
            outside = [s.address for s in self.admin.announcer.sources if family_of(s.address) == family_of(shown)]
            shown = outside[0] if outside else 'localhost'
        shown = '[%s]' % shown if ':' in shown else shown
        return '%s://%s:%d/%s' % ('https' if self.tls else 'http', shown, self.port,
                                  '?token=' + self.token if self.show_token else '')

    def is_own_name(self, name, local_address):
        """Whether a Host header names this server; `local_address` is the address that the browser connected to."""
        name = name.lower()
        if name in self.names:
            return True
        try:
            address = canonical(name.strip('[]'))
        except ValueError:
            return False
        return is_loopback(address) or not self.loopback and address == local_address.partition('%')[0]

    # --- its thread ---

    def turn(self):
        for key, _ in self._selector.select():
            if key.data is None:
                self._wakeup.clear()
            else:
                self._accept(key.data)

    def _accept(self, sock):
        try:
            connection, sender = sock.accept()
        except BlockingIOError:
            return
        except OSError as error:
            self.report_once('a browser cannot be served: %s' % error)
            self._drop_idle()  # no descriptors: that gives one back
            self.stopping.wait(0.05)
            return
        with self._lock:
            full = len(self._connections) >= self._places
        if full and not self._drop_idle():
            connection.close()
            return
        try:
            Connection(self, connection, sender).start('http-%d' % next(self._numbers))
        except (OSError, ValueError, RuntimeError) as error:  # TLS: gone already; RuntimeError: no more threads
            logger.debug('http connection from %s is not served: %s', sender[0], error)
            connection.close()

    def _drop_idle(self):
        """Close the connection that has asked for nothing the longest time, to make room; False when all are busy."""
        with self._lock:
            idle = next((c for c in self._connections if not c.busy), None)
            self._connections.pop(idle, None)
        if idle is not None:
            idle.shut()
        return idle is not None

    def wake(self):
        self._wakeup.set()

    def finish(self):
        for sock in self._sockets:
            sock.close()
        with self._lock:
            connections = list(self._connections.items())
        for connection, _ in connections:
            connection.shut()
        deadline = time.monotonic() + END_TIME / 2
        for _, thread in connections:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._selector.close()
        self._wakeup.close()

    # --- connections' threads ---

    def enter(self, connection, thread):
        with self._lock:
            self._connections[connection] = thread

    def asked(self, connection):
        with self._lock:
            if connection in self._connections:
                self._connections.move_to_end(connection)

    def leave(self, connection):
        with self._lock:
            self._connections.pop(connection, None)


class Connection:
    """One browser's connection, served by a thread of its own until either side closes it."""

    def __init__(self, server, sock, sender):
        self.server = server
        self.sock = sock
        if server.tls:
            sock.getpeername()  # OSError when it is gone already: wrapping it then would leave it open
            self.sock = server.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self.sender = sender
        self.busy = False  # whether a request is being served now

    def start(self, name):
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.server.enter(self, thread)
        try:
            thread.start()
        except RuntimeError:
            self.server.leave(self)
            self.sock.close()
            raise

    def shut(self):
        """Make the thread end soon.  Any thread."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended itself

    def _run(self):
        try:
            self.sock.settimeout(REQUEST_TIME)
            if self.server.tls:
                self.sock.do_handshake()
            RequestHandler(self)
        except (OSError, ValueError) as error:
            logger.debug('http connection from %s ends: %s', self.sender[0], error)
        except Exception as error:
            self.server.report(error)
        finally:
            self._linger()
            self.server.leave(self)
            self.sock.close()

    def _linger(self):
        """Let the browser read what it was answered: closing with bytes unread would reset the connection at once."""
        deadline = time.monotonic() + LINGER_TIME
        try:
            self.sock.shutdown(socket.SHUT_WR)
            while time.monotonic() < deadline:
                self.sock.settimeout(LINGER_TIME / 2)
                if not self.sock.recv(1 << 16):
                    return
        except (OSError, ValueError):
            pass  # it is gone


# Nothing but this server's own files may be loaded or framed, and nothing is kept by caches.
HEADERS = (
    ('Content-Security-Policy', "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                                "img-src 'self' data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"),
    ('X-Content-Type-Options', 'nosniff'),
    ('X-Frame-Options', 'DENY'),
    ('Referrer-Policy', 'no-referrer'),
    ('Cross-Origin-Resource-Policy', 'same-origin'),
    ('Cache-Control', 'no-store'),
)

PROXY_HEADERS = ('Forwarded', 'X-Forwarded-For', 'X-Forwarded-Host', 'X-Real-IP', 'Via')

JSON, HTML = 'application/json', 'text/html; charset=utf-8'

NEEDS_TOKEN = ('A token is needed: open the link that dispyadmin printed when it started (it ends in ?token=...), or send '
               'the header "Authorization: Bearer TOKEN". If it printed none, the token is in the file given as '
               '--http_token; without that, the page is for the user who runs dispyadmin and for root alone.')


class RequestHandler(http.server.BaseHTTPRequestHandler):
    """Serves the requests of one connection: who may ask, what is asked for, one answer."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    command, path, requestline = None, '', ''  # until a request has been read
    server_version, sys_version = 'dispyadmin/' + __version__, ''

    def __init__(self, connection):
        self.connection_ = connection
        self._trusted = None  # whether the kernel says that our own user or root connected; asked once
        super().__init__(connection.sock, connection.sender, connection.server)

    def setup(self):
        super().setup()
        self.rfile.close()
        self._timed = _TimedReader(self.connection)
        self.rfile = io.BufferedReader(self._timed)

    def handle_one_request(self):
        self._timed.expect_request()
        self._body_read, self.raw_requestline = False, b''
        try:
            super().handle_one_request()
        except HttpError as error:
            self.send_error(error.status if self.raw_requestline else 414, str(error))
        finally:
            self.connection_.busy = False

    def serve(self):
        """Answer one request."""
        self.connection_.busy = True
        self.server.asked(self.connection_)
        self.connection.settimeout(REQUEST_TIME)
        try:
            self._check_host()
            path, query = self._target()
            if self._log_in(path, query):
                return
            self._check_access()
            action, argument = self._route(path)
            if self.command in ('POST', 'DELETE'):
                self._check_origin()
                self._send_json(action(self, argument, self._read_body()))
            else:
                action(self, argument, query)
        except HttpError as error:
            self._send_error(error.status, str(error), error.headers)
        except InputError as error:
            self._send_error(400, str(error))
        except UnknownNode as error:
            self._send_error(404, str(error))
        except OSError:
            raise  # the browser has gone
        except Exception as error:
            self.server.report(error)
            self._send_error(500, UNEXPECTED)

    def _target(self):
        """(path, {field: values of the query}) of the request."""
        path, _, query = self.path.partition('?')
        try:
            return path, urllib.parse.parse_qs(query, max_num_fields=20)
        except (ValueError, TypeError):  # TypeError: Python 3.6 before 3.6.8 cannot count
            return path, {}

    do_GET = do_HEAD = do_POST = do_DELETE = do_PUT = do_PATCH = do_OPTIONS = serve

    # --- who may ask ---

    def _check_host(self):
        """The Host header must name this server: else a foreign site whose name leads here could read everything."""
        host = self.headers.get_all('Host', [])
        match = re.match(r'(\[[^\]]*\]|[^:]*)(:[0-9]*)?\Z', host[0].strip()) if len(host) == 1 else None
        if match is None or not self.server.is_own_name(match.group(1), peer_address(self.connection.getsockname())):
            raise HttpError(421, 'Host: this server is not %s; if a proxy or a name of your own leads here, start '
                                 'dispyadmin with --http_name NAME' % (printable(host[0])[:80] if host else 'named'))

    def _check_access(self):
        if self._has_token() or self._is_trusted():
            return
        raise HttpError(401, NEEDS_TOKEN, **{'WWW-Authenticate': 'Bearer realm="dispyadmin"'})

    def _has_token(self):
        kind, _, token = self.headers.get('Authorization', '').partition(' ')
        if kind.lower() == 'bearer' and self._is_token(token.strip()):
            return True
        cookies = re.findall(r'(?:^|;\s*)%s=([^;]*)' % self._cookie_name(), self.headers.get('Cookie', ''))
        return any(self._is_token(cookie) for cookie in cookies)

    def _is_token(self, text):
        return hmac.compare_digest(text.encode('utf-8', 'replace'), self.server.token.encode('utf-8'))

    def _cookie_name(self):
        return 'dispyadmin-%d' % self.server.port  # cookies do not tell ports apart

    def _is_trusted(self):
        if self._trusted is None:
            self._trusted = self.server.trusts_kernel and connection_user(self.connection) in (0, os.geteuid())
        return self._trusted and not self._is_proxied()

    def _is_proxied(self):
        """Whether the request comes through a proxy, so that the connection does not tell whose it is."""
        host = re.sub(r':[0-9]*\Z', '', self.headers['Host'].strip().lower())
        return host in self.server.proxy_names or any(name in self.headers for name in PROXY_HEADERS)

    def _log_in(self, path, query):
        """A page's address with ?token=: keep the token in a cookie, and lead on to the address without it."""
        if self.command != 'GET' or 'token' not in query or path not in PAGES:
            return False
        if not self._is_token(query.pop('token')[0]):
            raise HttpError(401, 'token: this is not the token of the dispyadmin that runs now. ' + NEEDS_TOKEN)
        rest = urllib.parse.urlencode(query, doseq=True)
        cookie = '%s=%s; HttpOnly; SameSite=Strict%s' % (self._cookie_name(), self.server.token,
                                                         '; Secure' if self.server.tls else '')
        self._send(303, HTML, b'', {'Set-Cookie': cookie,
                                    'Location': './' + path.lstrip('/') + ('?' + rest if rest else '')})
        return True

    def _check_origin(self):
        """A browser says from which page a request comes: it must be our own."""
        origin = self.headers.get('Origin')
        if origin is None:
            return
        try:
            place = urllib.parse.urlsplit(origin).netloc.lower()
        except ValueError:
            place = None
        if place != self.headers['Host'].strip().lower():
            raise HttpError(403, 'Origin: requests from pages of %s are not allowed' % (printable(origin)[:80] or 'nowhere'))

    # --- what is asked for ---

    def _route(self, path):
        """(function, argument) for a path and the method; 404 and 405."""
        argument = None
        methods = ROUTES.get(path)
        if methods is None and path.startswith('/api/nodes/'):
            argument, methods = urllib.parse.unquote(path[len('/api/nodes/'):]), NODE_ROUTES
        if methods is None:
            raise HttpError(404, 'There is nothing at this address')
        action = methods.get('GET' if self.command == 'HEAD' else self.command)
        if action is None:
            raise HttpError(405, '%s does not go with this address' % printable(self.command)[:20],
                            Allow=', '.join(sorted(methods)))
        return action, argument

    def _read_body(self):
        """The JSON object in the request's body (an empty one when DELETE has none)."""
        kind = self.headers.get('Content-Type', '').partition(';')[0].strip().lower()
        if kind != JSON:
            raise HttpError(415, 'Content-Type: must be application/json')
        if self.headers.get('Transfer-Encoding'):
            raise HttpError(411, 'Transfer-Encoding: send the body with Content-Length instead')
        lengths = self.headers.get_all('Content-Length', [])
        if not lengths and self.command == 'DELETE':
            lengths = ['0']
        if not lengths:
            raise HttpError(411, 'Content-Length: is missing')
        if len(lengths) != 1 or not re.match(r'[0-9]{1,12}\Z', lengths[0].strip()):
            raise HttpError(400, 'Content-Length: must be a number of bytes')
        if int(lengths[0]) > MAX_BODY:
            raise HttpError(413, 'Content-Length: at most %d bytes are taken' % MAX_BODY)
        self._timed.expect_body(int(lengths[0]))
        try:
            data = self.rfile.read(int(lengths[0]))
        except socket.timeout:
            raise HttpError(408, 'Content-Length: the body did not arrive in time')
        if len(data) < int(lengths[0]):
            raise HttpError(400, 'Content-Length: the body is shorter')
        self._body_read = True
        return read_json(data) if data or self.command != 'DELETE' else {}

    def send_get_nodes(self, _, query):
        since = query.get('since', [None])[0]
        if since is not None and not re.match(r'[0-9]{1,16}\Z', since):
            raise InputError('since: must be the sequence number of an earlier answer')
        admin, lister = self.server.admin, self.server.lister
        snapshot = admin.snapshot(None if since is None else int(since))
        head = encode_json({'sequence': snapshot.sequence, 'time': time.time(), 'poll_interval': admin.schedule.interval,
                            'totals': snapshot.totals, 'full': snapshot.full, 'removed': snapshot.removed})
        text = head[:-1] + ',"nodes":[', snapshot.nodes, ']}'
        if self._takes_gzip() and len(snapshot.nodes) > 1:
            self._send(200, JSON, lister.packed(*text, most=snapshot.totals['nodes']), packed=True)
        else:
            self._send(200, JSON, lister.plain(*text))

    def send_get_node(self, node_id, _):
        self._send(200, JSON, self.server.admin.node(node_id).json().encode('ascii'))

    def send_get_about(self, *_):
        self._send_json(self.server.admin.about())

    def send_static(self, kind, data, packed):
        if self._takes_gzip():
            self._send(200, kind, packed, packed=True)
        else:
            self._send(200, kind, data)

    # --- answers ---

    def _send_json(self, value):
        self._send(200, JSON, encode_json(value).encode('ascii'))

    def _send_error(self, status, sentence, headers=None):
        if status == 401 and self.command == 'GET' and self._target()[0] in PAGES:
            self._send(status, HTML, (DENIED_HTML + sentence).encode('utf-8'), headers)
        else:
            self._send(status, JSON, json.dumps({'error': sentence}).encode('ascii'), headers)

    def send_error(self, code, message=None, explain=None):
        """What the standard library finds wrong with a request is told like all else."""
        self.close_connection = True
        self.headers = getattr(self, 'headers', None) or http.client.HTTPMessage()
        error = printable(message or 'request cannot be read')[:200]
        self._send(code, JSON, json.dumps({'error': error}).encode('ascii'))

    def _takes_gzip(self):
        """Whether the browser can unpack gzip (RFC 9110, 12.5.3)."""
        codings = self.headers.get('Accept-Encoding', '').lower().replace(' ', '').split(',')
        return any(re.match(r'(x-)?gzip(;q=(1|0?\.0{0,2}[1-9]).*)?\Z', coding) for coding in codings)

    def _send(self, status, kind, body, headers=None, packed=False):
        """The one place from which answers go.  Nothing secret is in them, so packing them tells nothing by their length."""
        if not packed and len(body) > 1400 and self._takes_gzip():  # below, one packet takes it as it is
            body, packed = gzipped(body), True
        length = self.headers.get('Content-Length', '0').strip()
        if not self._body_read and (length != '0' or 'Transfer-Encoding' in self.headers):
            self.close_connection = True  # what is left of the body would be taken for the next request
        self.connection.settimeout(REQUEST_TIME)
        self.request_version = self.protocol_version  # else an answer to HTTP/0.9 would have no headers
        self.send_response(status)
        for name, value in itertools.chain(HEADERS, (headers or {}).items()):
            self.send_header(name, value)
        self.send_header('Content-Type', kind)
        self.send_header('Vary', 'Accept-Encoding')
        if packed:
            self.send_header('Content-Encoding', 'gzip')
        self.send_header('Content-Length', str(len(body)))
        if self.close_connection:
            self.send_header('Connection', 'close')
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def log_message(self, format, *args):
        """At debug level only, and without the query: it may hold the token."""
        logger.debug('http %s %s %s', self.client_address[0], self.command,
                     (getattr(self, 'path', None) or '').partition('?')[0][:200])


def read_json(data):
    """A JSON object from the browser: InputError with a sentence for anything else."""
    def whole(text):
        if len(text) > 20:
            raise InputError('body: a number of %d digits' % len(text))
        return int(text)

    def no_constant(text):
        raise InputError('body: %s is no number' % text)
    try:
        value = json.loads(data.decode('utf-8'), parse_int=whole, parse_constant=no_constant)
    except (ValueError, RecursionError):
        raise InputError('body: must be JSON in UTF-8')
    if not isinstance(value, dict):
        raise InputError('body: must be a JSON object')
    return value


def take_fields(body, needed=(), optional=()):
    """The values of the fields that a request has to have, then of those that it may have (None when absent)."""
    for field in body:
        if field not in needed and field not in optional:
            raise InputError('%s: there is no such field in this request' % printable(field)[:80])
    for field in needed:
        if field not in body:
            raise InputError('%s: is missing' % field)
    return [body.get(field) for field in itertools.chain(needed, optional)]


def check_ids(ids):
    """The `nodes` of a request: a list of ids."""
    if not isinstance(ids, list) or not ids or not all(isinstance(node_id, str) for node_id in ids):
        raise InputError('nodes: must be a list of node ids that is not empty')
    if len(ids) > MAX_BODY_NODES:
        raise InputError('nodes: at most %d in one request' % MAX_BODY_NODES)
    return ids


def post_nodes(handler, _, body):
    """Add a node by host and port."""
    host, port = take_fields(body, ['host'], ['port'])
    if not isinstance(host, str):
        raise InputError('host: must be a host name or an IP address')
    try:
        host, port_too = split_host_port(host)
        if port is not None:
            check_whole('port', port, 1, 65535, '')
    except ValueError as error:
        raise InputError('host: %s' % error)
    if port is not None and port_too not in (None, port):
        raise InputError('port: %d, but the host says %d' % (port, port_too))
    return {'results': handler.server.admin.add(host, port or port_too)}


def post_secret(handler, _, body):
    """Try one more admin secret."""
    return {'results': handler.server.admin.add_secret(*take_fields(body, ['secret']))}


def post_poll(handler, _, body):
    """Set the poll interval, or poll now."""
    interval, now, ids = take_fields(body, (), ['interval', 'now', 'nodes'])
    admin = handler.server.admin
    if (interval is None) == (now is None):
        raise InputError('interval: give either "interval" in seconds or "now": true')
    if interval is not None:
        return {'poll_interval': admin.set_interval(interval), 'results': []}
    if now is not True:
        raise InputError('now: must be true')
    return {'poll_interval': admin.schedule.interval, 'results': admin.poll(None if ids is None else check_ids(ids))}


def post_scan(handler, _, body):
    """Search for nodes now."""
    take_fields(body)
    handler.server.admin.scan()
    return {'results': []}


def post_cpus(handler, _, body):
    """Set the CPUs that dispy uses."""
    ids, cpus = take_fields(body, ['nodes', 'cpus'])
    return {'results': handler.server.admin.set_cpus(check_ids(ids), cpus)}


def post_service_time(handler, _, body):
    """Set or clear a service time."""
    ids, control_, time_ = take_fields(body, ['nodes', 'control', 'time'])
    return {'results': handler.server.admin.set_service_time(check_ids(ids), control_, time_)}


def post_clients(handler, _, body):
    """Set how many more clients are served."""
    ids, clients = take_fields(body, ['nodes', 'clients'])
    return {'results': handler.server.admin.set_clients(check_ids(ids), clients)}


def delete_node(handler, node_id, body):
    """Forget a node."""
    take_fields(body)
    handler.server.admin.forget(node_id)
    return {'results': [success(node_id, 'Forgotten. It comes back when it shows itself again.')]}


def _static(kind, text):
    data = text.encode('utf-8')
    packed = []  # made when first asked for, so that it does not hold up the start

    def send(handler, *_):
        if not packed:
            packed.append(gzipped(data))
        handler.send_static(kind, data, packed[0])
    return {'GET': send}


PAGES = ('/', '/admin.html', '/admin_node.html')

# path -> method -> function(handler, id or None, body or query)
ROUTES = {
    '/page.css': _static('text/css; charset=utf-8', PAGE_CSS),
    '/page.js': _static('text/javascript; charset=utf-8', PAGE_JS),
    '/api/nodes': {'GET': RequestHandler.send_get_nodes, 'POST': post_nodes},
    '/api/about': {'GET': RequestHandler.send_get_about},
    '/api/secret': {'POST': post_secret},
    '/api/poll': {'POST': post_poll},
    '/api/scan': {'POST': post_scan},
    '/api/cpus': {'POST': post_cpus},
    '/api/service_time': {'POST': post_service_time},
    '/api/clients': {'POST': post_clients},
}
ROUTES.update((path, _static(HTML, PAGE_HTML)) for path in PAGES)

NODE_ROUTES = {'GET': RequestHandler.send_get_node, 'DELETE': delete_node}


def connection_user(sock):
    """The id of the user whose is the other end of a loopback connection; None when the kernel does not tell.

    Source: /proc/net/tcp, see proc(5).
    """
    there, here = sock.getpeername()[:2], sock.getsockname()[:2]
    tables = [('/proc/net/tcp6', socket.AF_INET6, '')]
    if sock.family == socket.AF_INET:  # a client may speak IPv4 through a socket of either family
        tables = [('/proc/net/tcp', socket.AF_INET, ''), ('/proc/net/tcp6', socket.AF_INET6, '::ffff:')]
    for name, family, prefix in tables:
        wanted = [_proc_address(family, prefix + place[0], place[1]) for place in (there, here)] + [b'01']  # established
        try:
            with open(name, 'rb') as table:
                for line in table:
                    fields = line.split()
                    if fields[1:4] == wanted:
                        return int(fields[7])
        except (OSError, ValueError, IndexError):
            pass
    return None


def _proc_address(family, address, port):
    """An address as /proc/net/tcp writes it: words of 32 bits in the machine's own byte order, in hex."""
    packed = socket.inet_pton(family, address.partition('%')[0])
    words = struct.unpack('=%dI' % (len(packed) // 4), packed)
    return ('%s:%04X' % (''.join('%08X' % word for word in words), port)).encode('ascii')


# ---------------------------------------------------------------------------------------------------------------------
# Configuration and console
# ---------------------------------------------------------------------------------------------------------------------

def _whole(low, high):
    def parse(text):
        try:
            value = int(text.strip())
        except ValueError:
            raise ValueError('%s is not a whole number' % (printable(text)[:40] or 'an empty text'))
        if not low <= value <= high:
            raise ValueError('%d is not between %d and %d' % (value, low, high))
        return value
    return parse


def _seconds(text):
    try:
        value = float(text)
    except ValueError:
        raise ValueError('%s is not a number of seconds' % (printable(text)[:40] or 'an empty text'))
    if not LEAST_INTERVAL <= value <= MOST_INTERVAL:  # NaN is not, either
        raise ValueError('%s is not between %d and %d seconds' % (text.strip(), LEAST_INTERVAL, MOST_INTERVAL))
    return int(value) if value == int(value) else value


def _host(text):
    return check_host(text.strip())


def _place(text):
    """A --node: (host, port or None)."""
    return split_host_port(text)


def _flag(text):
    value = {'true': True, 'yes': True, 'on': True, '1': True,
             'false': False, 'no': False, 'off': False, '0': False, '': False}.get(text.strip().lower())
    if value is None:
        raise ValueError('%s is neither true nor false' % printable(text)[:40])
    return value


def _file(text):
    """A file name; that it can be read is seen when it is."""
    return text


def _secret(text):
    """A secret as given: itself, @FILE, or - to be asked for it; read_secret() gets it."""
    if not text:
        raise ValueError('is empty')
    return text


class Literal(str):
    """A secret that stands for itself, whatever it begins with."""


# name in the configuration; flags, metavar and help of the command line; how its text is read; the default.  A list as
# default means that it can be given again and again.
Option = collections.namedtuple('Option', 'key flags metavar parse default help')

OPTIONS = (
    Option('secret', ['--secret'], 'SECRET', _secret, '',
           'admin secret of the nodes: dispynode\'s --admin_secret. "-" asks for it without showing it, "@FILE" reads the '
           'first line of a file. These two, the environment variable DISPYADMIN_SECRET, the configuration file and the '
           'page are better places than the command line, which every user of this machine sees in the list of processes'),
    Option('hosts', ['-i', '--host'], 'HOST', _host, [],
           'name or address of this machine to find and hear nodes at; can be given again (default: every interface that '
           'is up)'),
    Option('nodes', ['--node'], 'HOST[:PORT]', _place, [],
           'a node that broadcasts do not reach; can be given again'),
    Option('http_host', ['--http_host'], 'HOST', _host, 'localhost',
           'where the page is served (default: localhost, for this machine alone; elsewhere a token is needed)'),
    Option('http_port', ['--http_port'], 'PORT', _whole(0, 65535), HTTP_PORT,
           'port of the page (default: %d; 0: any that is free)' % HTTP_PORT),
    Option('http_token', ['--http_token'], 'FILE', _file, '',
           'file whose first line is the token that browsers need where a token is needed (default: a new one at each '
           'start)'),
    Option('http_names', ['--http_name'], 'NAME', _host, [],
           'a further name under which browsers reach the page, for a proxy or tunnel in front; can be given again'),
    Option('info_port', ['--info_port'], 'PORT', _whole(0, 65535), None,
           'port at which nodes announce themselves, held all the time (default: %d and, for nodes before dispy 4.15, %d, '
           'shared in turns with dispy clients of this machine; 0: none, nodes are only asked)'
           % (PORT_PAIRS[0][0], PORT_PAIRS[1][0])),
    Option('node_port', ['--node_port'], 'PORT', _whole(1, 65535), None,
           'port of the nodes (default: %d and, for nodes before dispy 4.15, %d)' % (PORT_PAIRS[0][1], PORT_PAIRS[1][1])),
    Option('poll_interval', ['--poll_interval'], 'SEC', _seconds, POLL_INTERVAL,
           'seconds between two polls of a node (default: %d)' % POLL_INTERVAL),
    Option('ping_interval', ['--ping_interval'], 'SEC', _seconds, PING_INTERVAL,
           'seconds between two searches for new nodes (default: %d)' % PING_INTERVAL),
    Option('ipv4_udp_multicast', ['--ipv4_udp_multicast'], None, _flag, False,
           'search by multicast instead of broadcast in IPv4, as dispynode with the same option does'),
    Option('certfile', ['--certfile'], 'FILE', _file, '',
           'certificate for TLS with nodes and browsers; the file that dispynode has as --certfile'),
    Option('keyfile', ['--keyfile'], 'FILE', _file, '',
           'private key for --certfile, unless it is in that file'),
    Option('debug', ['-d', '--debug'], None, _flag, False,
           'log every announcement and request'),
)

# What an option may be called in a configuration file: by its key, its flag, or as in dispy before 4.14 (ip_addrs).
KEYS = {option.key: option for option in OPTIONS}
KEYS.update(host=KEYS['hosts'], ip_addrs=KEYS['hosts'], node=KEYS['nodes'], http_name=KEYS['http_names'])

# The dispyadmin of dispy saves all its options, given or not.  In a file with all of these, a port that is dispy's own
# was not asked for, and a secret stands for itself.
UPSTREAM_KEYS = {'secret', 'http_host', 'http_port', 'info_port', 'node_port', 'poll_interval', 'ping_interval',
                 'certfile', 'keyfile'}
DISPY_PORTS = set(itertools.chain(*PORT_PAIRS))


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line."""

    def error(self, message):
        raise UsageError(message)


def build_parser():
    """The command line.  An option that is not given is None."""
    parser = _Parser(prog='dispyadmin', allow_abbrev=sys.version_info < (3, 8), description='Find, watch and control the nodes of a dispy '
                     'cluster from a web page, by default at http://localhost:%d/.' % HTTP_PORT)
    parser.add_argument('--version', action='version', version='dispyadmin ' + __version__)
    parser.add_argument('--config', metavar='FILE', help='read options from this file; the command line comes first')
    parser.add_argument('--save_config', metavar='FILE', nargs='?', const='-',
                        help='write the options given to this file, readable by its owner alone, or to standard output; '
                             'then exit')
    for option in OPTIONS:
        kind = (dict(action='store_const', const='true') if option.metavar is None else
                dict(metavar=option.metavar, action='append' if isinstance(option.default, list) else 'store'))
        parser.add_argument(*option.flags, dest=option.key, help=option.help.replace('%', '%%'), **kind)
    return parser


def read_settings(argv, environ):
    """Command line, environment and configuration file as one namespace: every option, parsed, and `save_config`.

    UsageError for what cannot be.  The secret is still as it was given.
    """
    args = build_parser().parse_args(argv)
    given = {}
    if args.config:
        given.update(read_config(args.config))
    for option in OPTIONS:
        text = getattr(args, option.key)
        if text is not None:
            given[option.key] = _parse(option, text, option.flags[-1])
    settings = argparse.Namespace(save_config=args.save_config, given=given)
    for option in OPTIONS:
        setattr(settings, option.key, given.get(option.key, option.default))
    if args.secret is None and environ.get('DISPYADMIN_SECRET'):
        settings.secret = Literal(environ['DISPYADMIN_SECRET'])
    if settings.keyfile and not settings.certfile:
        raise UsageError('--keyfile: needs --certfile too')
    return settings


def _parse(option, text, name):
    try:
        return [option.parse(item) for item in text] if isinstance(text, list) else option.parse(text)
    except ValueError as error:
        raise UsageError('%s: %s' % (name, error))


def read_config(name):
    """{key: value} of a configuration file, ours or one that upstream's dispyadmin saved.  UsageError."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(name, encoding='utf-8') as file:
            parser.read_file(file)
    except OSError as error:
        raise UsageError('--config %s: %s' % (printable(name), error.strerror))
    except UnicodeDecodeError:
        raise UsageError('--config %s: is not text in UTF-8' % printable(name))
    except configparser.DuplicateOptionError as error:
        raise UsageError('--config %s: %s stands twice' % (printable(name), printable(error.option)))
    except (configparser.Error, ValueError) as error:  # its text may show a line with the secret: its number will do
        number = getattr(error, 'lineno', None) or (getattr(error, 'errors', None) or [[0]])[0][0]
        raise UsageError('--config %s: line %d is not "option = value" under [DEFAULT]'
                         % (printable(name), number))
    if parser.sections():
        raise UsageError('--config %s: unknown section [%s]; options are under [DEFAULT]'
                         % (printable(name), printable(parser.sections()[0])))
    values = {}
    for key, text in parser.defaults().items():
        option = KEYS.get(key)
        where = '--config %s: %s' % (printable(name), printable(key))
        if option is None:
            raise UsageError('%s: there is no such option' % where)
        if isinstance(option.default, list):
            values[option.key] = _parse(option, _read_list(text, where), where)
        elif text.strip() and not (option.default in ('', None) and text.strip() == 'None'):
            values[option.key] = _parse(option, text, where)
    if UPSTREAM_KEYS <= set(parser.defaults()):
        values = {key: Literal(value) if key == 'secret' else value for key, value in values.items()
                  if not (key in ('info_port', 'node_port') and value in DISPY_PORTS)}
    return values


def _read_list(text, where):
    """A Python list of strings, as upstream saves it, or words with commas or spaces between."""
    text = text.strip()
    if not text.startswith('['):
        return re.split(r'[,\s]+', text.strip(', \n')) if text else []
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        # "[fe80::1]:9701, [fe80::2]:9701" begins like a list too
        if re.match(r'\[[0-9A-Fa-f:.%\w]+\](:[0-9]+)?(\s*,|\Z)', text):
            return re.split(r'[,\s]+', text)
        raise UsageError('%s: must be a list of texts, as in [\'head1\', \'10.0.0.1\']' % where)
    return value


def write_config(settings):
    """The text of a configuration file with the options that were given."""
    lines = ['[DEFAULT]']
    for option in OPTIONS:
        if option.key not in settings.given:
            continue
        value = settings.given[option.key]
        if option.parse is _secret and value.startswith('@') and not isinstance(value, Literal):
            value = '@' + os.path.abspath(value[1:])
        elif option.parse is _file:
            value = os.path.abspath(value)
        if option.parse is _place:
            value = [_write_place(*place) for place in value]
        text = repr(value) if isinstance(value, list) else str(value)
        if text != text.strip() or '\n' in text or isinstance(value, Literal) and re.match(r'@|-\Z', text):
            raise UsageError('%s: a text that begins or ends with space, has several lines, or means something else in '
                             'a configuration file, cannot be saved' % option.flags[-1])
        lines.append('%s = %s' % (option.key, text))
    return '\n'.join(lines) + '\n'


def _write_place(host, port):
    return host if port is None else format_id(host, port)


def save_config(settings):
    """Write the configuration to where --save_config says: a file for its owner alone, or standard output."""
    text = write_config(settings)
    name = settings.save_config
    if name == '-':
        sys.stdout.write(text)
        return
    try:
        with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600), 'w', encoding='utf-8') as file:
            if hasattr(os, 'fchmod'):
                os.fchmod(file.fileno(), 0o600)  # before the secret is in it: the file may have been there
            file.truncate()
            file.write(text)
    except OSError as error:
        raise UsageError('--save_config %s: %s' % (printable(name), error.strerror))


def read_secret(text, option='--secret'):
    """The secret that --secret stands for.  UsageError."""
    if isinstance(text, Literal):
        pass
    elif text == '-':
        text = ask_secret(option) if sys.stdin and sys.stdin.isatty() else first_line(sys.stdin, option)
    elif text.startswith('@'):
        text = read_first_line(text[1:], option)
    try:
        text.encode('utf-8')
    except UnicodeEncodeError:
        raise UsageError('%s: must be text in UTF-8' % option)
    return text


def ask_secret(option):
    """Ask for a secret at the terminal, without showing it."""
    try:
        return getpass.getpass('Admin secret: ')
    except EOFError:
        raise UsageError('%s -: no secret was entered' % option)


def read_first_line(name, option):
    """The first line of a file, without its end; UsageError when there is none."""
    try:
        with open(name, encoding='utf-8') as file:
            return first_line(file, '%s %s' % (option, printable(name)))
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise UsageError('%s %s: %s' % (option, printable(name), getattr(error, 'strerror', None) or error))


def first_line(file, where):
    """The first line of an open text file, without its end.  UsageError."""
    try:
        line = file.readline(4096).rstrip('\r\n') if file else ''
    except UnicodeDecodeError:
        raise UsageError('%s: is not text in UTF-8' % where)
    if not line:
        raise UsageError('%s: the first line is empty' % where)
    return line


def read_token(name):
    """The token in a --http_token file.  UsageError."""
    token = read_first_line(name, '--http_token')
    if not re.match(r'[A-Za-z0-9._~+/=-]{8,200}\Z', token):
        raise UsageError('--http_token %s: the token must have 8 to 200 letters, digits or . _ ~ + / = -'
                         % printable(name))
    return token


class Console(Worker):
    """Takes commands from a terminal, while this program is in its foreground."""

    name = 'console'

    def __init__(self, admin, end):
        super().__init__()
        self._admin = admin
        self._end = end           # called for quit
        self._wakeup = Wakeup()
        self._fd = sys.stdin.fileno()
        self._asks_secret = None  # the terminal's attributes from before, while a secret is typed

    @staticmethod
    def is_possible():
        """Whether there is a terminal to take commands from."""
        try:
            if termios is None or sys.stdin is None or not os.isatty(sys.stdin.fileno()):
                return False
            os.tcgetpgrp(sys.stdin.fileno())  # it must be our controlling terminal, too
            return True
        except (OSError, ValueError):
            return False

    def turn(self):
        try:
            self._take_command()
        except OSError:  # the terminal has gone
            self.stopping.wait()

    def _take_command(self):
        if os.tcgetpgrp(self._fd) != os.getpgrp():
            self.stopping.wait(1.0)  # in the background; reading would stop the whole program
            return
        ready, _, _ = select.select([self._fd, self._wakeup.reader], [], [], 1.0)
        if self._fd in ready:
            line = os.read(self._fd, 4096)
            if line:
                self._obey(line.decode('utf-8', 'replace').strip())
            else:
                self.say('End of input; still running. Ctrl-C ends it.')
                self.stopping.wait()

    def wake(self):
        self._wakeup.set()

    def finish(self):
        self._echo(True)
        self._wakeup.close()

    def say(self, text):
        """Print for the one at the terminal; what nodes say has been made printable."""
        print(text, flush=True)

    def _obey(self, line):
        if self._asks_secret is not None:
            self._echo(True)
            self._take_secret(line)
            return
        command = self.COMMANDS.get(line.lower())
        if command is not None:
            command(self)
        elif line:
            self.say('%s: no such command; try help' % printable(line)[:80])

    def _help(self):
        self.say('nodes       list the nodes\nscan        search for nodes now\nsecret      add an admin secret\n'
                 'quit, exit  end dispyadmin')

    def _nodes(self):
        views = sorted((p.view for p in self._admin.snapshot().nodes), key=lambda view: view['id'])
        for view in views:
            cpus = '' if view['cpus'] is None else '%d of %d CPUs busy' % (view['busy'], view['cpus'])
            self.say('%-22s %-16s %-11s %-20s %s' % (view['id'], view['name'] or '', view['state'], cpus,
                                                     view['reason'] or ''))
        totals = self._admin.snapshot().totals
        self.say('%d nodes: %s' % (totals['nodes'], ', '.join('%d %s' % (totals[state], state) for state in STATES)))

    def _scan(self):
        self._admin.scan()
        self.say('Searching for nodes.')

    def _secret(self):
        print('Admin secret (not shown): ', end='', flush=True)
        self._echo(False)

    def _take_secret(self, secret):
        print()
        if not secret:
            self.say('No secret given; nothing is changed.')
            return
        try:
            results = self._admin.add_secret(secret)
        except InputError as error:
            self.say(str(error))
            return
        for result in results:
            self.say('%s: %s' % (result['id'], result['message']))
        self.say('%d node%s opened.' % (len(results), '' if len(results) == 1 else 's'))

    def _echo(self, on):
        if on and self._asks_secret is not None:
            before, self._asks_secret = self._asks_secret, None
            try:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, before)
            except termios.error:
                pass  # the terminal has gone
        elif not on:
            self._asks_secret = termios.tcgetattr(self._fd)
            silent = list(self._asks_secret)
            silent[3] &= ~termios.ECHO
            termios.tcsetattr(self._fd, termios.TCSADRAIN, silent)

    def _quit(self):
        self._end()

    COMMANDS = {'help': _help, '?': _help, 'nodes': _nodes, 'scan': _scan, 'secret': _secret,
                'quit': _quit, 'exit': _quit}


class _LogFormatter(logging.Formatter):
    """One line for each thing that happened; what came from the network cannot add lines or move the cursor."""

    def format(self, record):
        message = printable(record.getMessage())
        trace = self.formatException(record.exc_info).split('\n') if record.exc_info else ()
        first = '%s %s: %s' % (self.formatTime(record), record.levelname.lower(), message)
        return '\n'.join([first] + ['    ' + printable(line) for line in trace])


def start_logging(debug):
    """Log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LogFormatter())
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.INFO)


# ---------------------------------------------------------------------------------------------------------------------
# Entry
# ---------------------------------------------------------------------------------------------------------------------

def serve(settings):
    """Run until a signal or the console ends it."""
    # Nearly all that a poll makes goes with its last reference.  The search for the rest, which comes every 700 objects
    # unless told otherwise, took 8 % of the CPU of polling.
    gc.set_threshold(10000, 20, 20)
    admin = Admin(settings)
    try:
        server = WebServer(admin, settings, max(16, min(512, allow_many_files() // 4)))
    except StartError:
        admin.discard()
        raise
    ended = Wakeup()
    # The kernel may give a signal to any thread; this way the main one wakes whichever it is.
    signal.set_wakeup_fd(ended.writer.fileno())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    workers = [admin, server] + ([Console(admin, ended.set)] if Console.is_possible() else [])
    for worker in workers:
        worker.start()
    if not server.loopback and not server.tls:
        logger.warning('the page is served beyond this machine without TLS: secrets and the token travel in clear; '
                       'give --certfile, or keep it on localhost and use a tunnel')
    tell('dispyadmin %s: %s' % (__version__, server.url(settings.http_host)))
    if len(workers) > 2:
        tell('Commands: nodes, scan, secret, quit, help')
    select.select([ended.reader], [], [])
    for worker in workers:
        worker.end()
    deadline = time.monotonic() + END_TIME
    for worker in reversed(workers):
        worker.join(deadline)
    signal.set_wakeup_fd(-1)
    ended.close()


def tell(line):
    """Print a line, if there is anywhere to print it."""
    try:
        print(line, flush=True)
    except (OSError, ValueError, AttributeError):
        pass  # standard output is closed


def main(argv=None):
    """The command `dispyadmin`.  Returns the exit status: 0 ended, 1 cannot start, 2 usage or configuration."""
    try:
        settings = read_settings(sys.argv[1:] if argv is None else argv, os.environ)
        if settings.save_config:
            save_config(settings)
            return 0
        os.environ.pop('DISPYADMIN_SECRET', None)  # what is started from here has no business with it
        settings.secret = read_secret(settings.secret)
        settings.http_token = read_token(settings.http_token) if settings.http_token else ''
        start_logging(settings.debug)
        serve(settings)
        return 0
    except (UsageError, StartError) as error:
        print('dispyadmin: %s' % error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 0


if __name__ == '__main__':
    sys.exit(main())
