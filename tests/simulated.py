"""Thousands of simulated nodes in one process: a loop over epoll, one listening socket for all of 127/8.

    python3 -m tests.simulated --count 1000 --port 9701 --info_port 9700 --secret X [--protocol 4]

A node is a loopback address: the first is 127.1.0.1, and 250 share their first three numbers. The first line that is
printed begins with `simulated`. Lines on standard input say what nodes do; `[N] M` are the nodes from number N (0 when
it is left out) up to but without M, and a line replaces what the same word said before:

    silent [N] M                 these accept and never answer, until the other side closes
    dead [N] M                   these close as soon as they are asked
    announce ADMIN SECONDS [[N] M]
                                 these, or all, answer a discovery of ADMIN (an address), spread over so many seconds;
                                 prints `announced TIME FAILED` when all have, with their errors on standard error
    log                          prints `NAME TIME` for each poll since the last `log`, then `end`
    count                        prints the number of polls that were answered, and the CPU seconds of this process

A poll is a NODE_INFO or NODE_STATUS whose auth code opened the node; TIME is time.monotonic() of this machine. Polls are
noted from the first `log` on. The end of standard input ends the program.
"""

import argparse
import collections
import hashlib
import os
import pickle
import resource
import select
import socket
import struct
import sys
import time
import types

FIRST = struct.unpack('>I', socket.inet_aton('127.1.0.1'))[0]
MAX_CPUS = 8
BACKLOG = 4096
VERSION = '4.15.2'
CONTROLS = {'start_time': 'service_start', 'stop_time': 'service_stop', 'end_time': 'service_end'}


class DispyNodeAvailInfo:
    """What nodes pickle: by its name it is dispy's."""

    def __init__(self, cpu, memory, disk, swap):
        self.cpu, self.memory, self.disk, self.swap = cpu, memory, disk, swap


DispyNodeAvailInfo.__module__ = 'dispy'
sys.modules.setdefault('dispy', types.ModuleType('dispy')).DispyNodeAvailInfo = DispyNodeAvailInfo


def address_of(number):
    """The address of the node with this number, from 0."""
    return socket.inet_ntoa(struct.pack('>I', FIRST + number // 250 * 256 + number % 250))


def number_of(address):
    high, low = divmod(struct.unpack('>I', socket.inet_aton(address))[0] - FIRST, 256)
    return high * 250 + low


def sign_of(number, secret):
    return hashlib.sha1(('%d %s' % (number, secret)).encode()).hexdigest()


def code_of(number, secret):
    """The auth code that opens a node."""
    return hashlib.sha1((secret + sign_of(number, secret)).encode()).hexdigest().encode()


def framed(data):
    return struct.pack('>I', len(data)) + data


class Template:
    """A pickled dict whose changing numbers are overwritten in place: pickling each time would cost more than the rest.

    The numbers stay in the ranges of their opcodes, so that the bytes are those which pickle would write.
    """

    __slots__ = ('data', 'cpu', 'memory', 'jobs', 'time')

    def __init__(self, info, protocol):
        self.data = bytearray(framed(pickle.dumps(info, protocol)))
        self.cpu = self.after(b'\x8c\x03cpu\x94G')            # BINFLOAT, 8 bytes
        self.memory = self.after(b'\x8c\x06memory\x94\x8a\x05')  # LONG1, 5 bytes: 2**33 is the least of these numbers
        self.jobs = self.after(b'\x8c\x09jobs_done\x94J')     # BININT, 4 bytes: 2**16 is the least
        self.time = self.after(b'\x8c\x08cpu_time\x94G')

    def after(self, mark):
        return self.data.index(mark) + len(mark)


class SimulatedNode:
    """What one node knows of itself, and its answers."""

    __slots__ = ('number', 'name', 'sign', 'mode', 'protocol', 'cpus', 'busy', 'serve', 'times', 'polls', 'info', 'status')

    def __init__(self, number, secret, protocol):
        self.number, self.name, self.sign, self.protocol = number, 'sim%05d' % number, sign_of(number, secret), protocol
        self.mode, self.cpus, self.busy, self.serve, self.polls = '', MAX_CPUS, number % MAX_CPUS, -1, number
        self.times = {'service_start': None, 'service_stop': None, 'service_end': None}
        self.write()

    def write(self):
        """Write the templates of the answers anew, in the order in which dispynode puts the fields."""
        busy = min(self.busy, self.cpus)
        status = {'busy': busy, 'serve': self.serve, 'clients_done': self.number % 5, 'jobs_done': 2 ** 16,
                  'cpu_time': 1.5, 'scheduler_ip': None,
                  'avail_info': DispyNodeAvailInfo(50.0, 2 ** 33, 2 ** 37 + self.number * 4096, 100.0)}
        self.status = Template(status, self.protocol)
        self.info = Template(dict(status, name=self.name, **self.times, cpus=self.cpus - busy, max_cpus=MAX_CPUS),
                             self.protocol)

    def report(self, template, pack_real=struct.Struct('>d').pack_into, pack_jobs=struct.Struct('<i').pack_into,
               pack_memory=struct.Struct('<I').pack_into):
        """The bytes of an answer with figures that no other answer has."""
        self.polls = polls = self.polls + 1
        data = template.data
        pack_real(data, template.cpu, polls * 377 % 1000 / 10)
        pack_memory(data, template.memory, polls * 2654435761 & 0xfffff000)
        pack_jobs(data, template.jobs, 2 ** 16 + polls)
        pack_real(data, template.time, polls * 1.37)
        return data

    def control(self, tag, asked):
        """The value that a control is answered with."""
        if tag == b'SET_CPUS':
            cpus = MAX_CPUS if asked['cpus'] is None else asked['cpus'] + (MAX_CPUS if asked['cpus'] < 0 else 0)
            if not 0 <= cpus <= MAX_CPUS:
                return -1
            self.cpus, value = cpus, {'cpus': cpus}
        elif tag == b'SERVICE_TIME' and asked['control'] in CONTROLS:
            self.times[CONTROLS[asked['control']]] = None if asked['time'] == '0' else at(asked['time'])
            value = self.times
        elif tag == b'SERVE_CLIENTS':
            self.serve = asked['serve']
            value = {'serve': self.serve}
        else:
            return -1
        self.write()
        return value


def at(clock):
    """Unix time of HH:MM today, or of now."""
    now = time.localtime()
    hour, minute = (now.tm_hour, now.tm_min) if clock is None else map(int, clock.split(':'))
    return time.mktime(now[:3] + (hour, minute, 0, 0, 0, -1))


class Cluster:
    """All nodes and the loop that serves them.

    Connections are bare descriptors: they are read and written only when that cannot block, and a socket object for each
    would double the cost.
    """

    def __init__(self, options):
        self.options = options
        self.nodes = [SimulatedNode(number, options.secret, options.protocol) for number in range(options.count)]
        self.opened = {code_of(node.number, options.secret): node for node in self.nodes if options.secret}
        self.partial = {}                # descriptor -> what has come of a request
        self.calls = {}                  # descriptor -> socket that connects to the admin, and the message for it
        self.waiting = collections.deque()   # (time, admin, node) of those that are to announce themselves
        self.polls, self.asked, self.logging, self.failed, self.typed = 0, [], False, 0, b''
        self.epoll = select.epoll()
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(('0.0.0.0', options.port))
        self.listener.listen(BACKLOG)
        self.listener.setblocking(False)

    def run(self):
        listener = self.listener.fileno()
        self.epoll.register(listener, select.EPOLLIN)
        self.epoll.register(0, select.EPOLLIN)
        print('simulated %d nodes at port %d' % (len(self.nodes), self.options.port), flush=True)
        while True:
            for fd, events in self.epoll.poll(self.start_calls(), 1000):
                if fd == listener:
                    self.accept()
                elif fd in self.calls:
                    self.tell(fd)
                elif fd:
                    self.serve(fd)
                elif not self.read_commands():
                    return

    def accept(self):
        """All connections that wait. The private method gives the descriptor alone."""
        accept, register, readable = self.listener._accept, self.epoll.register, select.EPOLLIN
        try:
            while True:
                register(accept()[0], readable)
        except OSError:                  # no more; or no descriptors, for a moment
            pass

    def serve(self, fd):
        """Read what there is; answer when the request is whole: auth code, length, message."""
        try:
            before, data = self.partial.pop(fd, b''), os.read(fd, 4096)
            data = data and before + data
            if data and (len(data) < 44 or len(data) < 44 + int.from_bytes(data[40:44], 'big')):
                self.partial[fd] = data
                return
            reply = self.answer(fd, data) if data else b''
            if reply is None:
                return
            if reply:
                os.write(fd, reply)
        except OSError:                  # the other side has gone
            pass
        os.close(fd)

    def answer(self, fd, data):
        """The bytes to send before the connection is closed; None to let it hang."""
        node = self.opened.get(data[:40])
        opened = node is not None
        if not opened:
            sock = socket.socket(fileno=fd)
            number = number_of(sock.getsockname()[0])
            sock.detach()
            if not 0 <= number < len(self.nodes):
                return b''
            node = self.nodes[number]
        info = data.startswith(b'NODE_INFO:', 44)
        poll = opened and (info or data.startswith(b'NODE_STATUS:', 44))
        if poll and self.logging:
            self.asked.append((node.name, time.monotonic()))
        if node.mode:
            return None if node.mode == 'silent' else b''
        if poll:
            self.polls += 1
            return node.report(node.info if info else node.status)
        if info:
            return framed(node.sign.encode())
        tag, _, value = data[44:].partition(b':')
        return framed(pickle.dumps(node.control(tag, pickle.loads(value)) if opened else -1, node.protocol))

    # --- discovery ---

    def start_calls(self):
        """Connect those whose time has come; seconds until the next one's."""
        while self.waiting:
            seconds = self.waiting[0][0] - time.monotonic()
            if seconds > 0:
                return seconds
            _, admin, node = self.waiting.popleft()
            self.call(admin, node)
        return -1

    def call(self, admin, node):
        address = address_of(node.number)
        message = b'NODE_INFO:' + pickle.dumps({'ip_addr': address, 'port': self.options.port, 'sign': node.sign,
                                                'version': VERSION}, node.protocol)
        sock = socket.socket()
        sock.setblocking(False)
        self.calls[sock.fileno()] = sock, framed(message)
        sock.bind((address, 0))
        sock.connect_ex((admin, self.options.info_port))
        self.epoll.register(sock.fileno(), select.EPOLLOUT)

    def tell(self, fd):
        """The connection to the admin is there, or has failed."""
        sock, message = self.calls.pop(fd)
        with sock:
            try:
                sock.send(message)
            except OSError as error:
                self.failed += 1
                print('announcement from %s: %s' % (sock.getsockname()[0], error), file=sys.stderr, flush=True)
        if not self.calls and not self.waiting:
            print('announced %.6f %d' % (time.monotonic(), self.failed), flush=True)
            self.failed = 0

    # --- commands ---

    def read_commands(self):
        """False at the end of the input."""
        data = os.read(0, 4096)
        *lines, self.typed = (self.typed + data).split(b'\n')
        for line in lines:
            words = line.decode().split()
            if words:
                getattr(self, 'do_' + words[0])(*words[1:])
        return bool(data)

    def some(self, *numbers):
        return self.nodes[int(numbers[0]) if numbers[1:] else 0:int(numbers[-1])] if numbers else self.nodes

    def do_silent(self, *numbers):
        self.set_mode('silent', numbers)

    def do_dead(self, *numbers):
        self.set_mode('dead', numbers)

    def set_mode(self, mode, numbers):
        for node in self.nodes:
            if node.mode == mode:
                node.mode = ''
        for node in self.some(*numbers):
            node.mode = mode

    def do_announce(self, admin, seconds, *numbers):
        nodes, now = self.some(*numbers), time.monotonic()
        self.waiting.extend((now + float(seconds) * index / len(nodes), admin, node)
                            for index, node in enumerate(nodes))

    def do_log(self):
        asked, self.asked, self.logging = self.asked, [], True
        sys.stdout.write(''.join(['%s %.6f\n' % entry for entry in asked]) + 'end\n')
        sys.stdout.flush()

    def do_count(self):
        print('%d %.6f' % (self.polls, time.process_time()), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=100)
    parser.add_argument('--port', type=int, default=9701)
    parser.add_argument('--info_port', type=int, default=9700)
    parser.add_argument('--secret', default='X')
    parser.add_argument('--protocol', type=int, choices=(4, 5), default=min(5, pickle.HIGHEST_PROTOCOL))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Cluster(parser.parse_args()).run()


if __name__ == '__main__':
    main()
