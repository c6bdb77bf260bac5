"""Thousands of simulated nodes in one process: an event loop, one socket at the wildcard address for all of 127/8.

    python3 -m tests.simulated --count 1000 --port 9701 --secret X [--announce 127.0.0.1:9700]

A node is a loopback address; which one is asked is what the connection says of its own end. Lines on standard input
change what nodes do: `silent N` makes the first N accept and never answer, `dead N` makes them close at once, `log`
prints `ADDRESS TIME` for each NODE_INFO that was answered since the last `log`, then `end`.
"""

import argparse
import asyncio
import hashlib
import pickle
import socket
import struct
import sys
import time


def address_of(number, base='127.1.0.1'):
    """The address of the node with this number, from 0."""
    first = struct.unpack('>I', socket.inet_aton(base))[0]
    return socket.inet_ntoa(struct.pack('>I', first + number // 250 * 256 + number % 250))


class SimulatedNode:
    """What one node knows of itself."""

    __slots__ = ('name', 'sign', 'admin_auth', 'cpus', 'busy', 'serve', 'jobs_done', 'times', 'silent', 'dead')

    def __init__(self, number, secret):
        self.name = 'sim%05d' % number
        self.sign = hashlib.sha1(('%d %s' % (number, secret)).encode()).hexdigest()
        self.admin_auth = hashlib.sha1((secret + self.sign).encode()).hexdigest().encode() if secret else None
        self.cpus, self.busy, self.serve, self.jobs_done = 8, number % 8, -1, number
        self.times = {'service_start': None, 'service_stop': None, 'service_end': None}
        self.silent = self.dead = False

    def reply(self, code, message):
        tag, _, data = message.partition(b':')
        if code != self.admin_auth:
            return self.sign.encode() if tag == b'NODE_INFO' else pickle.dumps(-1, 5)
        asked = pickle.loads(data) if data else {}
        if tag == b'NODE_INFO':
            return self.info()
        if tag == b'SET_CPUS':
            cpus = 8 if asked['cpus'] is None else asked['cpus'] if asked['cpus'] >= 0 else 8 + asked['cpus']
            if not 0 <= cpus <= 8:
                return pickle.dumps(-1, 5)
            self.cpus = cpus
            return pickle.dumps({'cpus': cpus}, 5)
        if tag == b'SERVICE_TIME' and asked['control'] in ('start_time', 'stop_time', 'end_time'):
            return pickle.dumps(self.times, 5)
        if tag == b'SERVE_CLIENTS':
            self.serve = asked['serve']
            return pickle.dumps({'serve': self.serve}, 5)
        return pickle.dumps(-1, 5)

    def info(self):
        self.jobs_done += 1
        busy = min(self.busy, self.cpus)
        info = {'busy': busy, 'serve': self.serve, 'clients_done': 3, 'jobs_done': self.jobs_done,
                'cpu_time': self.jobs_done * 1.5, 'scheduler_ip': None, 'avail_info': None, 'name': self.name,
                'cpus': self.cpus - busy, 'max_cpus': 8}
        return pickle.dumps(dict(info, **self.times), 5)


class Conversation(asyncio.Protocol):
    """One request to one node."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.data = b''

    def connection_made(self, transport):
        self.transport = transport
        self.node = self.cluster.nodes.get(transport.get_extra_info('sockname')[0])
        if self.node is None or self.node.dead:
            transport.abort()

    def data_received(self, data):
        self.data += data
        if len(self.data) < 44 or self.node is None:
            return
        size, = struct.unpack('>L', self.data[40:44])
        if len(self.data) < 44 + size:
            return
        if self.cluster.logging and self.data[44:53] == b'NODE_INFO':
            self.cluster.asked.append((self.node.name, time.monotonic()))
        if self.node.silent:
            return
        reply = self.node.reply(self.data[:40], self.data[44:44 + size])
        self.transport.write(struct.pack('>L', len(reply)) + reply)
        self.transport.close()


class Cluster:
    def __init__(self, count, secret):
        self.nodes = {address_of(number): SimulatedNode(number, secret) for number in range(count)}
        self.asked = []
        self.logging = False

    async def serve(self, port, info_port):
        loop = asyncio.get_event_loop()
        server = await loop.create_server(lambda: Conversation(self), '0.0.0.0', port, backlog=4096)
        print('simulated %d nodes at port %d' % (len(self.nodes), server.sockets[0].getsockname()[1]), flush=True)
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while True:
            line = (await reader.readline()).decode().split()
            if not line:
                return
            await self.obey(line, port, info_port)

    async def obey(self, line, port, info_port):
        if line[0] == 'announce':
            await self.announce(line[1], port, info_port, float(line[2]))
        elif line[0] in ('silent', 'dead'):
            for number, node in enumerate(self.nodes.values()):
                setattr(node, line[0], number < int(line[1]))
        elif line[0] == 'log':
            asked, self.asked, self.logging = self.asked, [], True
            sys.stdout.write(''.join('%s %.6f\n' % entry for entry in asked) + 'end\n')
            sys.stdout.flush()

    async def announce(self, admin, port, info_port, seconds):
        """Every node answers a discovery by TCP, within so many seconds."""
        async def one(number, address, node):
            await asyncio.sleep(seconds * number / len(self.nodes))
            message = b'NODE_INFO:' + pickle.dumps({'ip_addr': address, 'port': port, 'sign': node.sign,
                                                    'version': '4.15.2'}, 5)
            try:
                _, writer = await asyncio.open_connection(admin, info_port, local_addr=(address, 0))
                writer.write(struct.pack('>L', len(message)) + message)
                await writer.drain()
                writer.close()
            except OSError as error:
                print('%s: %s' % (address, error), file=sys.stderr)
        await asyncio.gather(*[one(number, address, node)
                               for number, (address, node) in enumerate(self.nodes.items())])
        print('announced', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=100)
    parser.add_argument('--port', type=int, default=9701)
    parser.add_argument('--info_port', type=int, default=9700)
    parser.add_argument('--secret', default='X')
    options = parser.parse_args()
    asyncio.get_event_loop().run_until_complete(Cluster(options.count, options.secret).serve(
        options.port, options.info_port))


if __name__ == '__main__':
    main()
