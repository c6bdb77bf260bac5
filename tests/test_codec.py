"""The wire codec against the standard library's pickle, over generated values and over bytes that no node sends."""

import math
import pickle
import pickletools
import random
import struct
import sys
import time
import types
import unittest
import unittest.mock

import dispyadmin

ROUNDS = 400                     # generated values for each protocol
PROTOCOLS = range(2, 6)          # those that nodes write: 2 by Python 2.7, 4 and 5 by Python 3
NEWEST = pickle.HIGHEST_PROTOCOL

INFO = {'busy': 1, 'serve': -1, 'clients_done': 2, 'jobs_done': 40, 'cpu_time': 63.1, 'scheduler_ip': '10.0.0.1',
        'avail_info': None, 'name': 'n17', 'service_start': None, 'service_stop': None, 'service_end': 1767218400,
        'cpus': 3, 'max_cpus': 8}


def plain_value(rand, depth=4):
    """A value that nodes could send: what it is made of is never shared."""
    kind = rand.randrange(10 if depth else 7)
    if kind == 0:
        return rand.choice([None, True, False])
    if kind <= 2:
        return rand.choice([0, 1, 255, 256, 65535, 65536, 2 ** 31, 2 ** 62]) * rand.choice([1, -1]) + rand.randrange(3)
    if kind == 3:
        return rand.choice([0.0, -0.0, 1e300, math.inf, rand.random(), -rand.random() * 1e9])
    if kind <= 6:
        return ''.join(rand.choice('ab\n\'"\\ \u00e9\u4e2d\U0001f600\x00\x7f') for _ in range(rand.randrange(300 // 9)))
    size = rand.randrange(6)
    if kind == 7:
        return [plain_value(rand, depth - 1) for _ in range(size)]
    if kind == 8:
        return tuple(plain_value(rand, depth - 1) for _ in range(size))
    return {'k%d' % i: plain_value(rand, depth - 1) for i in range(size)}


def instance(state, module='dispy', name='DispyNodeAvailInfo', extra=b''):
    """What Python 2 and 3 write in protocol 2 for an object of a new-style class."""
    head = b'\x80\x02c' + module.encode() + b'\n' + name.encode() + b'\nq\x00)\x81q\x01'
    return head + pickle.dumps(state, 2)[2:-1] + extra + b'b.'


class Agreement(unittest.TestCase):
    """What pickle writes of plain values is read as the same value."""

    def test_generated_values(self):
        rand = random.Random(1)
        for protocol in PROTOCOLS:
            if protocol > NEWEST:
                continue
            for _ in range(ROUNDS):
                value = plain_value(rand)
                data = pickle.dumps(value, protocol)
                if len(data) > dispyadmin.MAX_MESSAGE:
                    continue
                with self.subTest(protocol=protocol, value=value):
                    self.assertEqual(dispyadmin.read_value(data), value)
                    self.assertEqual(repr(dispyadmin.read_value(data)), repr(value))   # True is not 1, -0.0 is not 0.0

    def test_optimized_pickles(self):
        """Without the memo opcodes that nobody reads, as some writers leave them out."""
        for protocol in range(2, min(NEWEST, 4) + 1):
            data = pickletools.optimize(pickle.dumps(INFO, protocol))
            self.assertEqual(dispyadmin.read_value(data), INFO)

    def test_python_2_byte_strings(self):
        data = b'\x80\x02}q\x00(U\x04nameq\x01U\x03n17q\x02U\x04cpusT\x02\x00\x00\x004\xe9u.'
        self.assertEqual(dispyadmin.read_value(data), {'name': 'n17', 'cpus': '4\u00e9'})

    def test_python_2_long(self):
        self.assertEqual(dispyadmin.read_value(b'\x80\x02\x8a\x05\x00\x00\x00\x00\x01.'), 2 ** 32)

    def test_python_2_int_of_more_than_four_bytes(self):
        """Python 2.7 writes it in decimals in protocol 2 too: the free memory and disk of each of its nodes."""
        for number in (2 ** 31, -2 ** 31 - 1, 8589934592, 2 ** 63 - 1, -2 ** 63):
            self.assertEqual(dispyadmin.read_value(b'\x80\x02I%d\n.' % number), number)
        self.assertEqual(dispyadmin.read_value(
            b'\x80\x02}q\x01(U\x06memoryI8589934592\nU\x04diskI-2147483649\nU\x03cpuG@I\x00\x00\x00\x00\x00\x00u.'),
            {'memory': 8589934592, 'disk': -2147483649, 'cpu': 50.0})

    def test_the_one_class(self):
        state = {'cpu': 97.5, 'memory': 2 ** 33, 'disk': 2 ** 40, 'swap': 100.0}
        self.assertEqual(dispyadmin.read_value(instance(state)), state)
        data = (b'\x80\x04\x95\x50\x00\x00\x00\x00\x00\x00\x00\x8c\x05dispy\x94\x8c\x12DispyNodeAvailInfo\x94'
                b'\x93\x94)\x81\x94' + pickle.dumps(state, 2)[2:-1] + b'b.')
        self.assertEqual(dispyadmin.read_value(data), state)

    def test_replies_are_read_in_one_go_as_the_reader_reads_them(self):
        """The short way for what nodes write; it must never make something else of any bytes."""
        state = {'cpu': 97.5, 'memory': 2 ** 33, 'disk': 2 ** 40, 'swap': 100.0}
        module = types.ModuleType('dispy')
        module.DispyNodeAvailInfo = type('DispyNodeAvailInfo', (), {'__module__': 'dispy'})
        avail_info = module.DispyNodeAvailInfo()
        avail_info.__dict__.update(state)
        with unittest.mock.patch.dict(sys.modules, dispy=module):
            replies = [pickle.dumps(dict(INFO, avail_info=shown), protocol)
                       for shown in (None, avail_info) for protocol in range(2, NEWEST + 1)]
        rand = random.Random(1)
        for data in replies:
            if data[1] >= 4:                     # below: Python 2.7, which has no order of fields
                self.assertIsNotNone(dispyadmin._read_reply(data), data)
            for _ in range(ROUNDS):
                changed = bytearray(data)
                for _ in range(rand.randrange(3)):
                    changed[rand.randrange(len(data))] = rand.choice(b'\x00\x01\x05(}uU\x8cKNGJMq\x94' + data)
                self.assertEqual(*(self.told(read, bytes(changed)) for read in (
                    lambda data: dispyadmin._read_reply(data) or dispyadmin._ValueReader().read(data),
                    lambda data: dispyadmin._ValueReader().read(data))))

    @staticmethod
    def told(read, data):
        try:
            return repr(sorted(read(data).items()))
        except (LookupError, TypeError, ValueError, AttributeError, dispyadmin.WireError):
            return None                      # read_value() makes a WireError of it; or it is no dict

    def test_replies_of_one_length_and_many_shapes(self):
        shapes = [dict(INFO, name='n' * length, jobs_done=jobs, clients_done=clients)
                  for length, jobs, clients in ((3, 2 ** 20, 7), (4, 300, 300), (5, 300, 7), (6, 7, 7), (3, 300, 300),
                                                (4, 7, 300))]
        for shape in shapes:
            self.assertEqual(dispyadmin._read_reply(pickle.dumps(shape, 4)), shape)

    def test_requests_are_read_by_pickle_in_every_python(self):
        data = dispyadmin.write_message(b'NODE_INFO:', {'sign': 'a' * 40})
        self.assertTrue(data.startswith(b'NODE_INFO:\x80\x02'))
        self.assertEqual(pickle.loads(data[len(b'NODE_INFO:'):]), {'sign': 'a' * 40})


HEAD = b'\x80\x02'                 # of every pickle of protocol 2
HOSTILE = {
    'a function': pickle.dumps(print, 2),
    'os.system': HEAD + b'cos\nsystem\n(U\x04truetR.',
    'a class by its name on the stack': b'\x80\x04\x8c\x02os\x8c\x06system\x93.',
    'another class of dispy': instance({}, name='DispyJob'),
    'the class itself as the value': b'\x80\x02cdispy\nDispyNodeAvailInfo\n.',
    'the class in a list': HEAD + b']cdispy\nDispyNodeAvailInfo\na.',
    'the class in a tuple': HEAD + b'cdispy\nDispyNodeAvailInfo\n\x85.',
    'the class in a dict': HEAD + b'}(U\x04namecdispy\nDispyNodeAvailInfo\nu.',
    'the class as state': HEAD + b'cdispy\nDispyNodeAvailInfo\nq\x00)\x81h\x00b.',
    'the class called': b'\x80\x02cdispy\nDispyNodeAvailInfo\n)R.',
    'object state that is no dict': b'\x80\x02cdispy\nDispyNodeAvailInfo\n)\x81]b.',
    'state for a plain dict': b'\x80\x02}}b.',
    'a persistent id': HEAD + b'Pid\n.',
    'an extension': b'\x80\x02\x82\x01.',
    'bytes': pickle.dumps(b'abc', 4),
    'a set': pickle.dumps({1, 2}, 4),
    'a complex number': pickle.dumps(1j, 2),
    'an integer of 17 bytes': pickle.dumps(1 << 130, 2),
    'an integer that says it has 2 GB': b'\x80\x02\x8b\xff\xff\xff\x7f\x01.',
    'an integer of 5,000 digits': HEAD + b'I' + b'9' * 5000 + b'\n.',
    'an integer of 20 digits': HEAD + b'I' + b'9' * 20 + b'\n.',
    'an integer with underscores': HEAD + b'I1_0\n.',
    'an integer with spaces': HEAD + b'I 10\n.',
    'an integer in other digits': HEAD + 'I\u0661\u0662\n.'.encode(),
    'an integer without end': HEAD + b'I10',
    'text that says it has 4 GB': b'\x80\x02X\xff\xff\xff\xffabc.',
    'text that says it has 2**63 bytes': b'\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.',
    'tuples 4,000 deep': HEAD + b')' + b'\x85' * 4000 + b'.',
    'tuples 9,000 deep': HEAD + b')' + b'\x85' * 9000 + b'.',
    'lists 2,000 deep': HEAD + b']' * 2000 + b'a' * 1999 + b'.',
    'lists 9,000 deep': HEAD + b']' * 9000 + b'a' * 8999 + b'.',
    'nine lists': pickle.dumps([[[[[[[[[1]]]]]]]]], 2),
    'a list that holds itself': b'\x80\x02]q\x00h\x00a.',
    'one list twice': b'\x80\x02(]q\x00h\x00t.',
    'a list doubled again and again': b'\x80\x02]q\x00' + b'(h\x00h\x00lq\x00' * 500 + b'.',
    'a tuple as a key': b'\x80\x02}K\x01\x85K\x02s.',
    'an integer as a key': b'\x80\x02}K\x01K\x02s.',
    'a key without a value': b'\x80\x02}(K\x01u.',
    'items for a list': b'\x80\x02](X\x01\x00\x00\x00aK\x01u.',
    'an append to a dict': b'\x80\x02}K\x01a.',
    'a mark as an item': b'\x80\x02](a.',
    'a mark as the value': b'\x80\x02(.',
    'marks alone': HEAD + b'(' * 5000 + b'.',
    'no mark': b'\x80\x02t.',
    'nothing': b'',
    'no end': b'\x80\x02N',
    'a head alone': HEAD,
    'half a head': b'\x80',
    'an end alone': HEAD + b'.',
    'two values': HEAD + b'NN.',
    'a memo index that was never set': b'\x80\x02j\xff\xff\xff\xff.',
    'a memo index of protocol 0': HEAD + b'Ng0\n.',
    'a put of protocol 0': HEAD + b'Np0\n.',
    'a put of nothing': b'\x80\x02q\x00.',
    'a string of protocol 0': HEAD + b"S'a'\n.",
    'a string that is a call': HEAD + b"S__import__('os')\n.",
    'a text of protocol 0': HEAD + b'Va\n.',
    'a long of protocol 0': HEAD + b'L4294967296L\n.',
    'a float of protocol 0': HEAD + b'F1.5\n.',
    'a bool of protocol 0': HEAD + b'I01\n.',
    'a list of protocol 0': HEAD + b'(l.',
    'a dict of protocol 0': HEAD + b'(d.',
    'a protocol to come': b'\x80\x06N.',
    'two heads': HEAD + HEAD + b'N.',
    'no head': b'N.',
    'more values than a message has': b'\x80\x02](' + b'N' * 5000 + b'e.',
    'a class named by lists in lists': HEAD + b']' * 1019 + b'a' * 1018 + b'N\x93',
    'a class named by more lists in lists': HEAD + b']' * 2040 + b'a' * 2039 + b'N\x93.',
    'lists in lists in place of the class': HEAD + b']' * 2000 + b'a' * 1999 + b')\x81.',
    'lists in lists in place of no arguments': HEAD + b'cdispy\nDispyNodeAvailInfo\n' + b']' * 2000 + b'a' * 1999 + b'\x81.',
    'a reply whose items never end': b'\x80\x02}(' + b'U\x04busyN' * 2000,
    'a reply of many objects': b'\x80\x02}(' + b'U\navail_infocdispy\nDispyNodeAvailInfo\n)\x81}(ub' * 200,
    'a message of 17 KiB': pickle.dumps('a' * 17000, 2),
    'opcodes without end': b'\xff' * 100,
}


class Refusal(unittest.TestCase):
    """Everything else is refused with a WireError: at once, without memory, without recursion."""

    def test_hostile_bytes(self):
        for what, data in HOSTILE.items():
            with self.subTest(what):
                with self.assertRaises(dispyadmin.WireError):
                    dispyadmin.read_value(data)

    def test_protocols_that_no_node_writes(self):
        for protocol in (0, 1):
            for value in (INFO, -1, 'text', {'cpus': 3}):
                with self.subTest(protocol=protocol, value=value), self.assertRaises(dispyadmin.WireError):
                    dispyadmin.read_value(pickle.dumps(value, protocol))

    def test_high_memo_index_costs_nothing(self):
        """pickle's own reader allocates a gigabyte for these eleven bytes."""
        self.assertIsNone(dispyadmin.read_value(b'\x80\x02Nr\xff\xff\xff\x07.'))

    def test_cut_off_anywhere(self):
        data = pickle.dumps(INFO, 2)
        for size in range(len(data)):
            with self.assertRaises(dispyadmin.WireError):
                dispyadmin.read_value(data[:size])

    def test_changed_bytes_never_raise_anything_else(self):
        rand = random.Random(2)
        samples = [pickle.dumps(INFO, protocol) for protocol in range(2, min(NEWEST, 5) + 1)] + [instance({'cpu': 1.0})]
        began = time.monotonic()
        for _ in range(20000):
            data = bytearray(rand.choice(samples))
            for _ in range(rand.randrange(1, 6)):
                data[rand.randrange(len(data))] = rand.randrange(256)
            try:
                dispyadmin.read_value(bytes(data))
            except dispyadmin.WireError:
                pass
            self.assertLess(time.monotonic() - began, 300, 'some input stalls the reader')


class Replies(unittest.TestCase):
    """What a node says of itself: checked field by field."""

    def test_sign(self):
        self.assertEqual(dispyadmin.read_info(b'0123456789' * 4), '0123456789' * 4)

    def test_managed_cpus_are_free_and_busy_ones(self):
        info = dispyadmin.read_info(pickle.dumps(INFO, 2))
        self.assertEqual((info.cpus, info.busy, info.max_cpus, info.name), (4, 1, 8, 'n17'))
        self.assertEqual(info.service_end, 1767218400.0)

    def test_insane_fields_become_null(self):
        cases = [('cpu_time', math.nan), ('cpu_time', math.inf), ('cpu_time', -1), ('jobs_done', -3),
                 ('jobs_done', 'many'), ('jobs_done', True), ('name', 7), ('name', None), ('max_cpus', 2 ** 40),
                 ('service_end', 'noon'), ('serve', -2), ('serve', 1.5), ('scheduler_ip', {'a': 1}),
                 ('avail_info', [1]), ('busy', -1), ('clients_done', 2 ** 70), ('cpus', None)]
        for field, value in cases:
            with self.subTest(field=field, value=value):
                info = dispyadmin.read_info(pickle.dumps(dict(INFO, **{field: value}), 2))
                self.assertIsNone(getattr(info, field))

    def test_insane_availability_becomes_null(self):
        for state in ({}, {'cpu': -1, 'memory': -1, 'disk': 'x', 'swap': 101}, {'cpu': math.nan, 'memory': 1.5}):
            data = pickle.dumps(INFO, 2)[2:]
            data = b'\x80\x02' + data.replace(b'N', instance(state)[2:-1], 1)
            self.assertEqual(dispyadmin.read_info(data).avail_info, (None,) * 4)

    def test_names_cannot_hide_or_move_anything(self):
        for name, shown in (('a\nb', 'a\ufffdb'), ('\x1b[2J', '\ufffd[2J'), ('a\u202eb', 'a\ufffdb'),
                            ('\ud800', '\ufffd'), ('x' * 500, 'x' * 200), ('<b>', '<b>')):
            self.assertEqual(dispyadmin.read_info(pickle.dumps(dict(INFO, name=name), 2)).name, shown)

    def test_other_replies(self):
        for reply in (b'', b'NAK (no)', b'0' * 39, b'Z' * 40, pickle.dumps(-1, 2), pickle.dumps({'busy': 1}, 2)):
            with self.subTest(reply):
                with self.assertRaises(dispyadmin.WireError):
                    dispyadmin.read_info(reply)

    def test_controls(self):
        read = dispyadmin.read_control
        self.assertEqual(read(pickle.dumps({'cpus': 3}, 2)), {'cpus': 3})
        self.assertIs(read(pickle.dumps(-1, 2)), dispyadmin.REFUSED)
        self.assertIs(read(b''), dispyadmin.NOT_ADMIN)
        self.assertIs(read(b'NAK (invalid command)'), dispyadmin.NOT_ADMIN)
        self.assertEqual(read(pickle.dumps({'serve': -1, 'other': 1}, 2)), {'serve': -1})
        with self.assertRaises(dispyadmin.WireError):
            read(pickle.dumps([1], 2))

    def test_announcements(self):
        value = {'ip_addr': '10.0.0.17', 'port': 9701, 'sign': 'ab' * 20, 'version': '4.15.2'}
        read = dispyadmin.read_announcement
        self.assertEqual(read(b'PING:' + pickle.dumps(value, 2)),
                         dispyadmin.Announcement('PING', '10.0.0.17', 9701, 'ab' * 20, '4.15.2'))
        self.assertIsNone(read(b'PULSE:' + pickle.dumps(value, 2)))
        for field, wrong in (('port', 0), ('port', 70000), ('port', '1'), ('sign', 'x'), ('sign', None)):
            self.assertIsNone(read(b'PING:' + pickle.dumps(dict(value, **{field: wrong}), 2)))
        self.assertIsNone(read(b'PING:' + pickle.dumps(dict(value, version='4.15; rm'), 2)).version)
        with self.assertRaises(dispyadmin.WireError):
            read(b'PING:' + struct.pack('>Q', 7))


if __name__ == '__main__':
    unittest.main()
