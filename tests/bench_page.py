"""The page at 10,000 nodes in a real Chromium: how long it takes, and for how long it holds the browser's main thread.

    python3 tests/bench_page.py [--count 10000]

starts simulated nodes and dispyadmin in a network namespace of their own and prints a line for each figure; the
benchmark of everything (bench.py) calls measure() with a dispyadmin that it runs. It needs selenium, which
`python3 -m tests test_page` installs, and Debian's chromium and chromium-driver.

Three means, each for what it can tell:
- a script that is in the page before the page's own: when rows are there, when an event came and its frame was drawn
- Chromium's trace: how long each task held the main thread, whatever was in it: reading JSON, the page's own work,
  collecting garbage, style, layout, paint
- the page as an administrator sees it: its texts and the rows in the document
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

if __package__ in (None, ''):    # run as a program
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tests import environment, lab  # noqa: E402
from tests.__main__ import interrupted, isolated  # noqa: E402

COUNT = 10000
INTERVAL = 10                    # seconds between two polls of a node, so that each node changes so often
READY_TIMEOUT = 60               # seconds until all nodes are found and opened
USABLE = 2000                    # ms from the arrival of the full snapshot
HOLD = 50                        # ms in which an update may hold the main thread; from there on a task is a long one
QUICK = 100                      # ms from a click or a key to the frame that shows what came of it
FRAME = 50                       # ms between two frames while scrolling, in 95 of 100
SPARE_ROWS = 30                  # rows drawn beyond those in view: 10 at each edge, one cut at each, and a focused one
BULK = 15000                     # ms for a control of all nodes
WATCH = 20                       # seconds in which ordinary updates are watched: four of them
COLUMNS = ('name', 'state', 'cpus', 'busy', 'jobs', 'time', 'updated', 'address')
TYPED = ('7', '2', '9', None, 'sim', '1', '2', None, 'z', 'z', None)      # None: empty it again

# In the page before its own scripts. `usable`: rows are in the document, drawn, and nothing else waits. `hold`: while
# it is set, a refresh is not sent.
PROBE = '''
(function () {
  const bench = window.bench = {usable: 0, drawn: 0, took: [], hold: null, held: null};
  const later = function (then) {
    requestAnimationFrame(function () { requestAnimationFrame(then); });
  };
  const fetched = window.fetch;
  window.fetch = async function (path, options) {
    if (bench.hold && /nodes[?]since/.test(path)) {
      bench.held = path;
      await bench.hold;
    }
    return fetched.call(window, path, options);
  };
  const watch = new MutationObserver(function () {
    if (!document.querySelector('#rows > tr')) return;
    watch.disconnect();
    later(function () {
      bench.drawn = performance.now();
      requestIdleCallback(function () { bench.usable = performance.now(); });
    });
  });
  watch.observe(document, {childList: true, subtree: true});
  // From the moment at which the browser got the event, which may be well before the page did.
  ['click', 'input', 'change'].forEach(function (kind) {
    window.addEventListener(kind, function (event) {
      const began = event.timeStamp;
      later(function () { bench.took.push(performance.now() - began); });
    }, true);
  });
}());
'''

# Scrolls through the whole table and back in so many jumps, or by so many pixels in each frame;
# [[ms since the last frame, rows in the document, rows in view, gaps in the table]].
SCROLL = '''
const done = arguments[arguments.length - 1];
const port = document.querySelector('#viewport');
const rows = document.querySelector('#rows');
const steps = arguments[0];
const pixels = arguments[1];
const frames = [];
let last = performance.now();
let step = 0;
function look() {
  const box = port.getBoundingClientRect();
  const seen = Array.from(rows.children).map(function (tr) { return tr.getBoundingClientRect(); })
    .filter(function (place) { return place.bottom > box.top && place.top < box.bottom; });
  const x = box.left + 60;
  const gaps = [box.top + 90, (box.top + box.bottom) / 2, box.bottom - 20].filter(function (y) {
    const hit = document.elementFromPoint(x, y);
    return y > 0 && y < innerHeight && !(hit && hit.closest('#rows'));
  });
  return [rows.children.length, seen.length, gaps.length];
}
function frame() {
  const now = performance.now();
  const gap = now - last;
  last = now;
  const at = step <= steps ? step / steps : 2 - step / steps;
  step += 1;
  const next = step > 2 * steps ? function () { done(frames); } : function () { requestAnimationFrame(frame); };
  if (pixels) {
    port.scrollTop += pixels;
    frames.push([gap, 0, 0, 0]);
    next();
    return;
  }
  port.scrollTop = at * (port.scrollHeight - port.clientHeight);
  // The page draws in the frame after the event of scrolling; this runs when that frame is done.
  requestAnimationFrame(function () { setTimeout(function () {
    frames.push([gap].concat(look()));
    next();
  }); });
}
requestAnimationFrame(frame);
'''


# ---- Chromium's trace ------------------------------------------------------------

class Trace:
    """The tasks of the page's main thread, between start() and stop()."""

    CATEGORIES = ['disabled-by-default-devtools.timeline', 'blink.user_timing']

    def __init__(self, driver, more=()):
        import websocket         # selenium brings it
        self.driver, self.categories, self.number, self.keep = driver, self.CATEGORIES + list(more), 0, []
        with urllib.request.urlopen('http://%s/json/version' % driver.capabilities[
                'goog:chromeOptions']['debuggerAddress'], timeout=10) as answer:
            address = json.loads(answer.read().decode())['webSocketDebuggerUrl']
        self.socket = websocket.create_connection(address, timeout=30, suppress_origin=True)

    def send(self, method, **params):
        self.number += 1
        self.socket.send(json.dumps({'id': self.number, 'method': method, 'params': params}))
        self.until(lambda message: message.get('id') == self.number)

    def until(self, wanted):
        """Read messages up to the wanted one; the events in them."""
        events, deadline = [], time.monotonic() + 60
        while time.monotonic() < deadline:
            message = json.loads(self.socket.recv())
            events += message.get('params', {}).get('value', []) if 'method' in message else []
            if wanted(message):
                return events
        raise AssertionError('Chromium does not end its trace')

    def start(self):
        self.send('Tracing.start', traceConfig={'recordMode': 'recordAsMuchAsPossible',
                                                'includedCategories': self.categories})
        self.mark()

    def mark(self):
        self.driver.execute_script("performance.mark('bench')")

    def stop(self):
        """The longest task between the marks: milliseconds by the clock, and of CPU. The mark tells which process and
        thread is the page's: when it is opened, another than that of the page before."""
        self.mark()
        self.send('Tracing.end')
        events = self.until(lambda message: message.get('method') == 'Tracing.tracingComplete')
        marks = [event for event in events if event['name'] == 'bench' and event['cat'] == 'blink.user_timing']
        where, began, ended = (marks[-1]['pid'], marks[-1]['tid']), marks[0]['ts'], marks[-1]['ts']
        self.keep = [event for event in events if (event['pid'], event['tid']) == where]
        return max((event['dur'] / 1000, event.get('tdur', 0) / 1000) for event in self.keep
                   if event['name'] == 'RunTask' and 'dur' in event and began < event['ts'] < ended)

    def close(self):
        self.socket.close()


# ---- the page ------------------------------------------------------------

class Page:
    """The page of a running dispyadmin in a Chromium of its own."""

    def __init__(self, url, more=()):
        self.url, self.browser = url, lab.Browser()
        self.driver = self.browser.driver
        try:
            self.driver.execute_cdp_cmd('Page.addScriptToEvaluateOnNewDocument', {'source': PROBE})
            self.driver.set_script_timeout(60)
            self.trace = Trace(self.driver, more)
        except BaseException:
            self.browser.close()
            raise

    def close(self):
        self.trace.close()
        self.browser.close()

    def js(self, expression, *args):
        return self.driver.execute_script('return ' + expression, *args)

    def wait(self, expression, timeout=30):
        return lab.wait_for(lambda: self.js(expression), timeout, expression)

    def text(self, key):
        return self.js('document.getElementById(arguments[0]).innerText', key)

    def timed(self, action):
        """Milliseconds from the event that the action makes to the frame that shows what came of it."""
        self.js('(bench.took = []).length')
        action()
        return self.wait('bench.took.length && Math.max(...bench.took)')

    def click(self, selector):
        self.driver.find_element('css selector', selector).click()

    def api(self, path, body=None):
        """The same dispyadmin, asked from outside of the page."""
        request = urllib.request.Request(self.url + path, None if body is None else json.dumps(body).encode(),
                                         {'Content-Type': 'application/json'})
        with urllib.request.urlopen(request, timeout=40) as answer:
            return json.loads(answer.read().decode())


# ---- figures: each function gives rows of (what, target, value, ok) ------------------------------------------------

def below(what, value, most):
    return what, 'under %d ms' % most, '%.0f ms' % value, value < most


def hold(what, longest, most=None):
    """A row for the longest task. Where it had to wait for a core, its CPU time is much less than that by the clock;
    the clock counts."""
    return (what, 'under %d ms' % most if most else '', '%.0f ms (%.0f ms of CPU)' % longest,
            most is None or longest[0] < most)


def worst(what, values, most):
    """A row for the worst of several; the median tells whether it was one of them or all."""
    values = sorted(values)
    return (what, 'under %d ms' % most, '%.0f ms (median of %d: %.0f ms)' % (
        values[-1], len(values), values[len(values) // 2]), values[-1] < most)


def opening(page, count):
    """From the arrival of the full snapshot; opened twice, since the first time Chromium itself is cold."""
    rows = []
    for when in ('first opened', 'opened again'):
        page.trace.start()
        page.driver.get(page.url)
        page.wait('bench.usable')
        arrived = page.js("performance.getEntriesByType('resource').find(e => /api.nodes/.test(e.name)).responseEnd")
        rows.append(below('page, %s: usable after the full snapshot' % when, page.js('bench.usable') - arrived, USABLE))
        rows.append(hold('page, %s: longest hold of the main thread' % when, page.trace.stop()))
        shown = page.text('total-nodes').split()[0]
        if shown != format(count, ','):
            raise AssertionError('the page shows %s nodes' % shown)
    return rows


def ordinary_updates(page):
    """The page is left alone while nodes change."""
    page.trace.start()
    time.sleep(WATCH)
    return [hold('page: longest hold in %d s of updates' % WATCH, page.trace.stop(), HOLD)]


def everything_changes(page, count):
    """Refreshes are held back until every node has changed after what the page knows."""
    page.js('(bench.held = null, bench.hold = new Promise(function (go) { bench.release = go; }), 1)')
    path = page.wait('bench.held')
    lab.wait_for(lambda: len(page.api(path)['nodes']) >= count or None, 25, 'every node changes')
    page.trace.start()
    page.js("(bench.hold = null, performance.clearResourceTimings(), bench.release(), 1)")
    page.wait("performance.getEntriesByType('resource').some(e => /api.nodes/.test(e.name) && e.responseEnd)")
    time.sleep(1)                # taking them in is spread over tasks
    return [hold('page: longest hold in an update of all nodes', page.trace.stop(), HOLD)]


def now_polls(page):
    """What the Now button sends, while the page refreshes as it likes."""
    page.trace.start()
    page.api('api/poll', {'now': True})
    time.sleep(8)
    return [hold('page: longest hold while Now polls all nodes', page.trace.stop(), HOLD)]


def sorting(page):
    rows = []
    for column in COLUMNS:
        clicks = [page.timed(lambda: page.click('[data-sort="%s"] button' % column)) for _ in range(3)]
        rows.append(worst('page: sort by %s, click to frame' % column, clicks, QUICK))
    if page.js("document.querySelector('[data-sort=address]').getAttribute('aria-sort')") == 'descending':
        page.click('[data-sort="address"] button')
    return rows


def typing(page):
    """Letter by letter: many match, few, none."""
    box = page.driver.find_element('css selector', '#filter')
    times = []
    for text in TYPED * 2:
        if text is None:
            times.append(page.timed(lambda: page.js(
                "(document.querySelector('#filter').select(), document.execCommand('delete'))")))
        else:
            times += [page.timed(lambda: box.send_keys(letter)) for letter in text]
    return [worst('page: filter, key to frame', times, QUICK)]


def scrolling(page):
    jumps = page.driver.execute_async_script(SCROLL, 50, 0)
    page.js("(document.querySelector('#viewport').scrollTop = 0)")
    gaps = sorted(frame[0] for frame in page.driver.execute_async_script(SCROLL, 150, 60)[1:])
    spare = max(drawn - seen for _, drawn, seen, _ in jumps)
    blank = sum(bool(frame[3]) for frame in jumps)
    return [
        ('page: rows drawn beyond those in view, scrolling', 'at most %d' % SPARE_ROWS, '%d of %d drawn' % (
            spare, max(frame[1] for frame in jumps)), spare <= SPARE_ROWS),
        ('page: gaps in the table after a jump', 'at most 1 %', '%d of %d' % (blank, len(jumps)),
         blank * 100 <= len(jumps)),
        below('page: between frames, 3,600 px/s, 95 of 100', gaps[int(len(gaps) * .95)], FRAME)]


def select_all(page, count):
    took = page.timed(lambda: page.click('#select-all'))
    said = page.text('count')
    return [below('page: select all, click to frame', took, QUICK),
            ('page: nodes selected', format(count, ','), said, '%s selected' % format(count, ',') in said)]


def bulk(page, count):
    """CPUs of all nodes through the page's own controls, and back to all of them."""
    rows = []
    for key, title in (('7', 'Set CPUs to 7'), ('', 'Set all CPUs')):
        field = page.driver.find_element('css selector', '#cpus')
        field.clear()
        field.send_keys(key)
        page.trace.start()
        began = time.monotonic()
        page.click('#cpus-set' if key else '#cpus-all')
        page.wait("document.querySelector('#ask').open", 30)      # what will change is shown first
        page.click('#ask-yes')
        said = page.wait("(document.querySelector('#outcome').dataset.state !== 'working' && "
                         "document.querySelector('#outcome-summary').innerText.startsWith('%s')) && "
                         "document.querySelector('#outcome-summary').innerText" % title, 60)
        took = (time.monotonic() - began) * 1000
        time.sleep(1)
        rows.append(below('page: %s, click to outcome' % title, took, BULK))
        rows.append(('page: its outcome', '%s done' % format(count, ','), said,
                     said.endswith(': %s done' % format(count, ','))))
        # Without a target: all of this machine's cores are at work for ten thousand nodes and their answers.
        rows.append(hold('page: longest hold meanwhile', page.trace.stop()))
    return rows


def measure(url, count=COUNT, tell=None):
    """[(what, target, value, ok)] of the page at this address; its nodes change every ten seconds. `tell` is called with
    each row as it is found."""
    page = Page(url)
    try:
        rows = []
        for part in (lambda: opening(page, count), lambda: ordinary_updates(page),
                     lambda: everything_changes(page, count), lambda: now_polls(page), lambda: sorting(page),
                     lambda: typing(page), lambda: scrolling(page), lambda: select_all(page, count),
                     lambda: bulk(page, count)):
            found = part()
            rows += found
            for row in found if tell else ():
                tell(*row)
        return rows
    finally:
        page.close()


# ---- alone ------------------------------------------------------------

class Nodes:
    """The simulated nodes, in a process of their own."""

    def __init__(self, count, port=9701, info_port=9700):
        self.popen = subprocess.Popen([sys.executable, '-m', 'tests.simulated', '--count', str(count), '--port',
                                       str(port), '--info_port', str(info_port)], cwd=environment.ROOT,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.popen.stdout.readline()

    def announce(self, seconds=5):
        self.popen.stdin.write(b'announce 127.0.0.1 %d\n' % seconds)
        self.popen.stdin.flush()

    def close(self):
        self.popen.terminate()
        self.popen.wait()
        self.popen.stdin.close()
        self.popen.stdout.close()


def wait_ready(admin, count):
    """Until all nodes are open, without asking for more than the totals time and again."""
    deadline, seen = time.monotonic() + READY_TIMEOUT, admin.get('/api/nodes')
    while seen['totals']['ready'] < count:
        if time.monotonic() > deadline:
            raise AssertionError('%d of %d nodes are ready' % (seen['totals']['ready'], count))
        time.sleep(1)
        seen = admin.get('/api/nodes?since=%d' % seen['sequence'])


def run(count, tell):
    nodes, admin = Nodes(count), None
    try:
        # Without the checks of Python that tests switch on.
        admin = lab.Admin('-i', '127.0.0.1', '--info_port', 9700, '--node_port', 9701, '--poll_interval', INTERVAL,
                          env={'DISPYADMIN_SECRET': 'X', 'PYTHONDEVMODE': '', 'PYTHONWARNINGS': ''})
        nodes.announce()
        wait_ready(admin, count)
        return measure(admin.url, count, tell)
    finally:
        if admin:
            admin.close()
        nodes.close()


def show(what, target, value, ok):
    print('%-58s %-16s %-34s %s' % (what, target, value, 'ok' if ok else 'MISSED'), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=COUNT)
    parser.add_argument('--isolated', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.isolated:
        command = isolated() + [sys.executable, os.path.abspath(__file__), '--isolated'] + sys.argv[1:]
        os.execvp(command[0], command)
    signal.signal(signal.SIGTERM, interrupted)
    run(options.count, show)


if __name__ == '__main__':
    main()
