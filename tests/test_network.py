"""Several hosts on a bridge, in network namespaces: real broadcast, multicast of IPv4 and IPv6, interfaces as real
machines have them."""

import os
import re
import signal
import socket

from . import environment, lab

PORT = 9700                      # every host has its own ports, so these can be the real ones
IPV4_GROUP = '239.255.61.59'
IPV6_GROUP = 'ff05::b409:3171:9705:5134:6159'


class NetworkTest(lab.LabTest):
    def setUp(self):
        super().setUp()
        lab.need_namespaces()

    def segment(self, hosts, **kwargs):
        return self.start(lab.Segment, hosts, **kwargs)

    def host_node(self, host, address=None, **kwargs):
        return self.node('open', address=address or host.address, namespace=host,
                         info_port=kwargs.pop('info_port', PORT), **kwargs)

    def host_admin(self, host, *options, **kwargs):
        """dispyadmin with the ports and interfaces that it takes by itself."""
        return self.start(lab.Admin, '--secret', 'open', '--poll_interval', 1, '--ping_interval', 600, *options,
                          namespace=host, **kwargs)

    def ear(self, host, address, port=PORT + 1):
        """A socket in the host that hears only what is sent to this address."""
        def listen():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((address, port))
            sock.settimeout(10)
            return sock
        sock = host.call(listen)
        self.addCleanup(sock.close)
        return sock


class Broadcast(NetworkTest):
    def test_segment(self):
        """Nodes that run and nodes that come; one that ends says so; one that dies does not."""
        self.check_segment('exited', '--info_port', PORT)
        self.check_segment('exited|refused')         # the port is left to others: what is said to all is not heard

    def check_segment(self, words, *options):
        head, one, two, three = self.segment(4).hosts
        first, second = self.together(lambda: self.host_node(one), lambda: self.host_node(two))
        admin = self.host_admin(head, *options)
        for node in (first, second):
            admin.wait_node(node, timeout=5, state='ready', name=node.name)
        third = self.host_node(three)
        admin.wait_node(third, timeout=15, state='ready')
        first.signal(signal.SIGTERM)
        first.wait()
        admin.wait_node(first, timeout=5, state='unreachable', reason=lambda text: re.search(words, text or ''))
        second.kill()
        admin.wait_node(second, timeout=5, state='unreachable', reason=lambda text: 'exited' not in (text or 'exited'))
        self.assertTrue(admin.control('cpus', [third], cpus=1)[third.id]['ok'])
        self.assertEqual(third.managed(), 1)

    def test_terminated_with_distant_poll(self):
        head, one = self.segment(2).hosts
        node = self.host_node(one)
        admin = self.start(lab.Admin, '--secret', 'open', '--poll_interval', 600, '--info_port', PORT, namespace=head)
        admin.wait_node(node, state='ready')
        node.signal(signal.SIGTERM)
        node.wait()
        admin.wait_node(node, timeout=45, state='unreachable', reason=lambda text: 'exited' in (text or ''))

    def test_releases_on_their_own_ports(self):
        """4.11 and 4.15 with the ports that each has by default, found by one dispyadmin with its own."""
        packages = [packages for packages in environment.node_matrix() if packages.required == ('dispy==4.11.0',)]
        old = packages[0] if packages else environment.node_packages('4.14.0', psutil=False)
        head, one, two = self.segment(3).hosts
        first, second = self.together(lambda: self.host_node(one),
                                      lambda: self.host_node(two, info_port=61590, packages=old))
        admin = self.host_admin(head)
        for node in (first, second):
            admin.wait_node(node, timeout=15, state='ready', version=node.packages.required[0].split('==')[1])

    def test_broadcast_address(self):
        """The interface's own broadcast address, of a mask that is not /24."""
        segment = self.segment(2, prefix=20)
        head, one = segment.hosts
        third = int(segment.network.split('.')[2]) | 15
        ear = self.ear(one, '10.77.%d.255' % third)
        limited = self.ear(one, '255.255.255.255')
        self.host_admin(head)
        for sock in (ear, limited):
            data, sender = sock.recvfrom(2000)
            self.assertTrue(data.startswith(b'NODE_INFO:'))
            self.assertEqual(sender[0], head.address)

    def test_two_interfaces(self):
        """Every interface that is up is asked, and nodes at each are told an address that they can reach."""
        left, right = self.segment(2), self.segment(1)
        head = left.hosts[0]
        first = self.host_node(left.hosts[1])
        address = head.address
        right.plug(head, 9, 'eth1')
        second = self.host_node(right.hosts[0])
        admin = self.host_admin(head)
        for node in (first, second):
            admin.wait_node(node, timeout=10, state='ready')
        admin.close()
        chosen = self.host_admin(head, '-i', address)           # one of them
        chosen.wait_node(first, timeout=10, state='ready')
        self.assertNotIn(second.id, chosen.nodes())

    def test_interface_lost_and_back(self):
        """Discovery resumes by itself, and addresses that came later are used."""
        segment = self.segment(3)
        head, one, two = segment.hosts
        first = self.host_node(one)
        admin = self.host_admin(head, '--ping_interval', 3)
        admin.wait_node(first, state='ready')
        head.ip('link', 'set', 'eth0', 'down')
        admin.wait_node(first, timeout=30, state='unreachable')
        head.ip('address', 'flush', 'dev', 'eth0')
        head.ip('address', 'add', segment.network + '99/24', 'broadcast', '+', 'dev', 'eth0')
        head.ip('link', 'set', 'eth0', 'up')
        second = self.host_node(two)
        for node in (first, second):
            admin.wait_node(node, timeout=40, state='ready')

    def test_unicast_announcement(self):
        """A node behind no common segment announces itself to dispyadmin's host alone (its --scheduler_host)."""
        segment = self.segment(2)
        head, one = segment.hosts
        admin = self.host_admin(head, '--info_port', PORT)
        # broadcasts of the node are lost: it sends them to the port of another cluster
        node = self.host_node(one, extra=['--scheduler_host', head.address])
        admin.wait_node(node, timeout=15, state='ready')


class Multicast(NetworkTest):
    def test_ipv4(self):
        head, one, two = self.segment(3).hosts
        first = self.host_node(one, extra=['--ipv4_udp_multicast'])
        admin = self.host_admin(head, '--ipv4_udp_multicast')
        self.assertTrue(admin.get('/api/about')['multicast'])
        admin.wait_node(first, timeout=10, state='ready')                       # asked
        second = self.host_node(two, extra=['--ipv4_udp_multicast'])
        admin.wait_node(second, timeout=25, state='ready')                      # announced

    def test_ipv4_instead_of_broadcast(self):
        head, one = self.segment(2).hosts
        broadcast = self.ear(one, '255.255.255.255')
        group = self.ear(one, IPV4_GROUP)
        one.call(lambda: group.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                                          socket.inet_aton(IPV4_GROUP) + socket.inet_aton(one.address)))
        self.host_admin(head, '--ipv4_udp_multicast')
        self.assertTrue(group.recv(2000).startswith(b'NODE_INFO:'))
        broadcast.settimeout(0.5)
        with self.assertRaises(socket.timeout):
            broadcast.recv(2000)

    def test_ipv6(self):
        """Without options: IPv6 nodes are found beside IPv4 nodes, by asking and by their announcements."""
        head, one, two, three = self.segment(4).hosts
        four = self.host_node(one)
        six = self.host_node(two, two.address6)
        admin = self.host_admin(head)
        admin.wait_node(four, timeout=10, state='ready')
        admin.wait_node(six, timeout=10, state='ready', ip_addr=six.address)
        later = self.host_node(three, three.address6)
        admin.wait_node(later, timeout=25, state='ready')
        self.assertTrue(admin.control('cpus', [six], cpus=1)[six.id]['ok'])
        self.assertEqual(six.managed(), 1)

    def test_ipv6_only(self):
        segment = self.segment(2)
        for host in segment.hosts:
            host.ip('-4', 'address', 'flush', 'dev', 'eth0')
        head, one = segment.hosts
        node = self.host_node(one, one.address6)
        for options in ((), ('-i', head.address6)):
            admin = self.host_admin(head, *options)
            admin.wait_node(node, timeout=10, state='ready')
            admin.close()


class Hosts(NetworkTest):
    def test_name_resolves_to_loopback(self):
        """Debian's default: the host's own name is 127.0.1.1. It must not be deaf."""
        head, one = self.segment(2).hosts
        head.hosts_file('127.0.0.1 localhost\n127.0.1.1 debian-host\n')
        node = self.host_node(one)
        admin = self.host_admin(head, before=['unshare', '--uts', 'sh', '-c', 'hostname debian-host && exec "$@"',
                                              'sh'])
        admin.wait_node(node, timeout=10, state='ready')

    def test_named_interface_address(self):
        """-i takes a name."""
        head, one = self.segment(2).hosts
        head.hosts_file('127.0.0.1 localhost\n%s head-by-name\n' % head.address)
        node = self.host_node(one)
        self.host_admin(head, '-i', 'head-by-name').wait_node(node, timeout=10, state='ready')

    def test_no_network(self):
        """Loopback alone: it runs there, and finds the node of the same machine."""
        alone = self.start(lab.Namespace, 'da%d-alone' % os.getpid())
        # without a route for it dispynode cannot broadcast on loopback; dispyadmin asks the loopback addresses
        admin = self.host_admin(alone)
        self.assertEqual(admin.get('/api/nodes')['nodes'], [])
        node = self.host_node(alone, '127.0.0.1')
        admin.post('/api/scan', {})
        admin.wait_node(node, timeout=20, state='ready')
