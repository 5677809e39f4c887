package lineconn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// crew starts n writers for as long as the test runs. Connections must be made, and so registered for their end, after it.
func crew(t *testing.T, n int) *WriterPool {
	w := NewWriterPool(n)
	t.Cleanup(w.Close)
	return w
}

// line is our end of a connection over net.Pipe, with the troubles that a test wants it to have: no buffers, and virtual
// time. Our side can be ended, which the peer does not notice.
type line struct {
	net.Conn
	conn     *Conn // that has this end
	peer     net.Conn
	from     net.Addr
	ended    func()        // is told that our side is
	stop     time.Duration // how long the process is stopped, once, in a write
	err      error         // of the network, in each read and write
	writes   int
	deadline time.Time // of the writes
}

// pipe makes a line, to whose peer w writes.
func pipe(t *testing.T, w *WriterPool) *line {
	ours, peer := net.Pipe()
	l := &line{Conn: ours, peer: peer}
	l.conn = w.NewConn(l)
	t.Cleanup(func() { l.conn.CloseNow(); peer.Close() })
	return l
}

func (l *line) RemoteAddr() net.Addr { return l.from }

func (l *line) CloseWrite() error {
	err := l.Conn.SetWriteDeadline(time.Time{}) // fails if it is closed
	if err == nil {
		l.ended()
	}
	return err
}

func (l *line) SetWriteDeadline(t time.Time) error { l.deadline = t; return l.Conn.SetWriteDeadline(t) }

func (l *line) Read(p []byte) (int, error) {
	if l.err != nil {
		return 3, l.err
	}
	return l.Conn.Read(p)
}

func (l *line) Write(p []byte) (int, error) {
	if l.writes++; l.err != nil {
		return 3, l.err
	}
	time.Sleep(l.stop)
	l.stop = 0
	return l.Conn.Write(p)
}

// play plays a script in virtual time: a line is steps and, behind bars, what comes of them, as it is noted. "9 times " in
// front of it has it played so often.
func play(t *testing.T, script string, notes *log.Logger, steps map[string]func(what string)) {
	t.Helper()
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		times := 1
		if n, rest, found := strings.Cut(line, " times "); found {
			times, _ = strconv.Atoi(n)
			line = rest
		}
		bar := strings.Index(line+" | ", " | ")
		for range times {
			var noted strings.Builder
			notes.SetOutput(&noted)
			for step := range strings.SplitSeq(line[:bar], ", ") {
				verb, what, _ := strings.Cut(step, " ")
				if pause, err := time.ParseDuration(what); verb == "wait" && err == nil {
					time.Sleep(pause)
				} else if do := steps[verb]; do != nil {
					do(what)
				} else if step != "" {
					t.Fatalf("no such step: %.100q", step)
				}
				synctest.Wait()
			}
			if got := strings.ReplaceAll(noted.String(), "\n", ""); got != line[bar:] {
				t.Fatalf("%.300s, but %d bytes are noted:%.300s", line, len(got), got)
			}
		}
	}
}

// talk plays a script with connections of a crew of one, and a group whose broadcasts are due every 10 s. A step is taken
// at the one that was named last, which is made when it is; the first is A. It is noted what comes of each ask and
// close, and what a peer hears.
func talk(t *testing.T, script string) (lines map[string]*line) {
	t.Helper()
	lines = map[string]*line{}
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		notes := log.New(nil, " | ", 0)
		w := crew(t, 1)
		g := NewGroup(10 * time.Second)
		shown := map[string]*Notice{}
		notice := func(text string) *Notice { // the same one each time; a slash is between two parts
			if shown[text] == nil {
				shown[text] = NewNotice(bytes.Split([]byte(text), []byte("/"))...)
			}
			return shown[text]
		}
		var l *line
		play(t, "at A\n"+script, notes, map[string]func(string){
			"at": func(name string) {
				if lines[name] == nil {
					lines[name] = pipe(t, w)
					lines[name].ended = func() { notes.Print("own side ended") }
				}
				l = lines[name]
			},
			// Our end:
			"prompt": func(prompt string) { l.conn.SetPrompt(prompt) },
			"tell":   func(text string) { l.conn.Tell("%s", text) },
			"show":   func(text string) { l.conn.Show(notice(text)) },
			"status": func(text string) { l.conn.Show(status(text)) },
			"flush":  func(string) { go l.conn.Flush() },
			"ask": func(string) {
				go func(c *Conn) {
					typed, err := c.ReadLine()
					if err != nil {
						typed += fmt.Sprintf("(%v)", err)
					}
					notes.Print(typed)
				}(l.conn)
			},
			"err":       func(string) { notes.Print(l.conn.Err()) },
			"end":       func(words string) { l.conn.End(words) },
			"close":     func(string) { go func(c *Conn) { c.Close(); notes.Print("closed") }(l.conn) },
			"cut":       func(string) { l.conn.CloseNow() },
			"join":      func(string) { g.Add(l.conn) },
			"leave":     func(string) { notes.Print("was a member: ", g.Remove(l.conn)) },
			"all":       func(text string) { g.Announce(notice(text), nil) },
			"others":    func(text string) { g.Announce(notice(text), l.conn) },
			"ring":      func(string) { <-g.Due.C; g.Broadcast(status("[x]")) },
			"end-group": func(words string) { g.EndAll(words) },
			// The peer:
			"type": func(lines string) { go io.WriteString(l.peer, strings.ReplaceAll(lines, " ", "\n")+"\n") },
			"pour": func(text string) { // and note that all is taken
				go func(peer net.Conn) {
					if _, err := io.WriteString(peer, text); err == nil {
						notes.Print("poured")
					}
				}(l.peer)
			},
			"hear":    func(n string) { hear(notes, l.peer, n) },
			"hang-up": func(string) { l.peer.Close() },
			// What else there is:
			"time":      func(string) { notes.Print(time.Since(start)) },
			"stopped":   func(pause string) { l.stop, _ = time.ParseDuration(pause) },
			"cut-cable": func(string) { l.err = syscall.EHOSTUNREACH },
			"no-places": func(string) { l.conn.writers = &WriterPool{} },
			"no-crew":   func(string) { l.conn.writers = &WriterPool{ready: make(chan []*Conn, 1)} },
			"crew":      func(string) { writeAll(<-l.conn.writers.ready, newTryWrite()) },
		})
	})
	return lines
}

// tcp is both ends of a connection that Listen made over 127.0.0.1. The peer's deadline only makes a broken test end.
func tcp(t *testing.T) (ours, peer *net.TCPConn) {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, dialErr := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	ours, err = l.AcceptTCP()
	if err := errors.Join(err, dialErr); err != nil {
		t.Fatal(err)
	}
	peer.SetReadBuffer(128 << 10)
	peer.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { ours.Close(); peer.Close() })
	return ours, peer
}

// hear notes what peer gets now, if anything: limit bytes at most, none: all.
func hear(notes *log.Logger, peer net.Conn, limit string) {
	n := int64(math.MaxInt64)
	fmt.Sscan(limit, &n)
	peer.SetReadDeadline(time.Now().Add(time.Nanosecond)) // in virtual time: when nobody does anything any more
	got, err := io.ReadAll(io.LimitReader(peer, n))
	peer.SetReadDeadline(time.Time{})
	if int64(len(got)) < n && !errors.Is(err, os.ErrDeadlineExceeded) {
		got = append(got, "(the end)"...)
	}
	synctest.Wait() // what comes of that is noted first
	if len(got) > 0 {
		notes.Printf("%s", got)
	}
}

// status is a status of a text.
func status(text string) *Notice {
	n := NewNotice([]byte(text))
	n.replaceable = true
	return n
}

// Messages arrive whole and in order, whatever parts they have; one without a byte holds up nothing. Connections that
// share a notice read it at their own pace, and nobody changes its bytes. What has been taken does not count any more,
// and a helper writes if the crew has no place for more.
func TestTellOrder(t *testing.T) {
	large := strings.Repeat("0123456789", 20000)
	shared := "/</" + "/" + large + "/" + large + "/"
	lines := talk(t, `
		tell one, show [//1,2,3/], show, tell, show `+shared+`, tell end, hear 15 | one[1,2,3]<0123
		at B, prompt ?, show `+shared+`, hear | <`+large+large+`?
		at A, hear | `+large[4:]+large+`end
		`+strings.Repeat("tell "+large+", hear | "+large+"\n", 3)+`
		no-places, tell one, tell two, hear | onetwo`)
	if cap(lines["A"].conn.queue) > 4 {
		t.Error("memory for a long queue is kept")
	}
}

// To send does not wait for a peer that reads nothing, and 256 KiB may wait for it; with more it is cut off.
func TestMaxWaiting(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	for _, tt := range []struct {
		send        string
		least, most int // of them may wait
	}{
		{"tell " + x(1000), 200, 262},
		{"show " + x(1000), 200, 262},
		{"prompt " + x(1000) + ", show " + x(20000), 200, 262},
		{"tell x", 1000, 3000}, // each takes some 100 bytes
		{"show " + x(20000), 1000, 3000},
		{"tell " + x(256<<10-128), 1, 1},
		{"tell " + x(256<<10-127), 0, 0},
	} {
		talk(t, fmt.Sprintf(`
			%d times %s
			err | <nil>
			%d times %[2]s
			err, tell no harm, flush, cut | the peer does not read
			err, time, hear | the peer does not read | 0s | (the end)`,
			tt.least, tt.send, tt.most+1-tt.least))
	}
}

// A status that is begun is finished at the pace of the peer, however slow: a byte every 30 s is enough, and meanwhile
// only the newest other waits. It has to be a byte every 30 s. Others get theirs at once, even from a crew of one.
func TestPatience(t *testing.T) {
	const slow = ", wait 29999ms, hear 1 | "
	older := "status " + strings.Repeat("x", 10000)
	text := strings.Repeat("01", 1<<20)
	talk(t, `
		status `+text+`, at B, tell hello, hear | hello
		at A
		`+strings.Repeat(older+slow+"0\n"+older+", status newest!"+slow+"1\n", 50)+`
		hear `+fmt.Sprint(len(text)-100+len("newest"))+` | `+text[100:]+`newest
		ask, wait 29999ms
		wait 1001ms | (the peer does not read)`)
}

// Time in which the process did not run is not the peer's fault. When all is written, no deadline, and so no timer, is left.
func TestPatienceWhenStopped(t *testing.T) {
	l := talk(t, "stopped 40s, tell hello, wait 48s, hear, err | hello | <nil>")["A"]
	if l.writes < 2 || !l.deadline.IsZero() {
		t.Errorf("after %d writes, the deadline is %v", l.writes, l.deadline)
	}
}

// A status gives way to a newer one, unless it is begun, which none is that has not reached the crew. All other messages
// stay, in their order.
func TestStatus(t *testing.T) {
	for _, script := range []string{
		"status 1, status 2, show a, status 3, crew, hear | a3",
		"show a, crew, status 1, status 2, hear | a2",
		"status 1, crew, status 2, status 3, hear | 13",
		"status 1, crew, show a, status 2, show b, status 3, show c, show d, status 4, show e, hear | 1abcd4e",
		"show a, crew, status 1, show b, hear | a1b",
	} {
		talk(t, "no-crew, "+script)
	}
}

// Close waits for End and until the peer has all; then it ends its own side, waits a second at most for the peer to end
// its own, and closes. After End nothing is sent any more, and what was sent before it arrives.
func TestClose(t *testing.T) {
	kib := strings.Repeat("x", 1<<10)
	for _, peer := range []string{
		"wait 999999999ns\n wait 1ns | closed",
		"wait 300ms, hang-up | closed",
		"type " + kib[:100] + ", wait 20ms, hang-up, wait 19999999ns\n wait 1ns | closed", // it takes two reads
		// More than a kernel may hold is taken; the close may be in a pause when the second is over.
		"pour " + strings.Repeat(kib, 128) + ", wait 999999999ns | poured\n wait 21ms | closed",
		"pour " + strings.Repeat(kib, 256) + ", wait 1020ms | closed",
	} {
		talk(t, `
			close, wait 1s, prompt ?, tell before, end last words, end more words, tell after, status after
			err, hear 13 | the conversation has ended | before?last w
			wait 1s, hear 4 | own side ended | ords
			`+peer+`
			err, hear | use of closed network connection | (the end)`)
	}
}

// CloseNow ends everything at once, whoever waits for whatever: it leaves no goroutine behind.
func TestCutOff(t *testing.T) {
	const ended = " | use of closed network connection"
	const asked = " | (use of closed network connection)"
	for wait, comes := range map[string]string{
		"tell hello":                    "",
		"ask":                           asked,
		"tell hello, ask":               asked,
		"tell hello, tell hello, flush": "",
		"close":                         " | closed",
		"tell hello, close":             " | closed",
		"end bye, close":                " | closed",
	} {
		talk(t, wait+`
			cut`+comes+`
			cut, err, tell too late, close, hear`+ended+` | closed | (the end)`)
	}
	talk(t, `
		end bye, close, hear | own side ended | bye
		cut | closed`)
}

// Everybody hears an announcement, followed by the prompt of each, but the one left out and those that have left. End is
// the end for all members.
func TestAnnounce(t *testing.T) {
	talk(t, `
		at A, prompt A?, join, at C, join, at B, prompt B?, join
		at C, leave, leave | was a member: true | was a member: false
		at B, others hear/ this/, hear, at C, hear, at A, hear | hear thisA?
		prompt, all again, hear | again
		at B, hear | againB?
		at C, hear, prompt A?, show again, hear | againA?
		tell 5% of it, hear | 5% of itA?
		end-group bye, hear
		at A, hear, ask | bye | (the conversation has ended)
		leave | was a member: false
		at B, hear, leave | bye | was a member: false`)
}

// All are told before the first is written to. (The test itself is the crew.)
func TestAnnounceQueuesFirst(t *testing.T) {
	w := &WriterPool{ready: make(chan []*Conn, 3)}
	g := NewGroup(time.Hour)
	for range 100 {
		g.Add(w.NewConn(nil))
	}
	g.Announce(NewNotice([]byte("all")), nil)
	if first, second := <-w.ready, <-w.ready; len(first) != 64 || len(second) != 36 || len(w.ready) != 0 {
		t.Errorf("the crew was handed %d and %d and more, want 64 and 36", len(first), len(second))
	}
}

// Each member's broadcasts are due by its own clock, and Due rings for the next one.
func TestBroadcastIsDue(t *testing.T) {
	talk(t, `
		wait 25s, join, wait 3s, at B, prompt B?, join
		ring, time, hear, at A, hear | 35s | [x]
		ring, time, hear, at B, hear | 38s | [x]B?
		ring, time, hear, leave, at A, hear | 45s | was a member: true | [x]
		ring, time, hear, at B, hear | 48s
		ring, time, hear, at A, hear | 55s | [x]`)
}

// A notice is made up once for a prompt. Small parts are joined with it, so that they are written at once; of large ones
// there is one copy for all.
func TestNoticeIsShared(t *testing.T) {
	large := bytes.Repeat([]byte("x"), 16<<10+1)
	for _, tt := range []struct {
		n     *Notice
		parts int
	}{
		{NewNotice(nil, large), 3},
		{NewNotice(large, []byte("]")), 2},
		{NewNotice([]byte("["), large, []byte("]")), 3},
		{NewNotice(), 1},
		{NewNotice(large[:8<<10], large[:8<<10]), 1},
		{status("[]"), 1},
	} {
		a, b := tt.n.before("A?"), tt.n.before("B?")
		text := string(bytes.Join(a.parts, nil))
		if tt.n.before("A?") != a || len(a.parts) != tt.parts || !strings.HasSuffix(text, "A?") || strings.Contains(text, "B?") {
			t.Errorf("not shared, or %d parts instead of %d, or not as it is: %.100q", len(a.parts), tt.parts, text)
		}
		for i, part := range a.parts {
			if tt.parts > 1 && len(part) >= len(large) && (&part[0] != &large[0] || &b.parts[i][0] != &large[0]) {
				t.Error("a large part was copied")
			}
		}
	}
}

// A status shows the newest texts only, and those before stay as they were. To make one costs no copy of the texts; they
// are copied once in about limit texts, to let the older ones go.
func TestFeed(t *testing.T) {
	for limit, shown := range map[int]int{20: 20, 1: 1, 3: 3, 0: 100} {
		f := NewFeed("\n[", "]\n", limit)
		var texts []string
		var statuses []*Notice
		copied, last := 0, new(byte) // of the memory of the texts
		for n := range 100 {
			texts = append(texts, fmt.Sprint(n+1000, strings.Repeat("x", 16<<10)))
			f.Add([]byte(texts[n]))
			if now := &f.texts[:cap(f.texts)][cap(f.texts)-1]; now != last {
				copied, last = copied+1, now
			}
			statuses = append(statuses, f.Snapshot())
			if part := statuses[n].parts[1]; f.Snapshot() != statuses[n] || &part[len(part)-1] != &f.texts[len(f.texts)-2] {
				t.Error("a status is made twice, or its texts are copied")
			}
		}
		for n, status := range statuses {
			want := "\n[" + strings.Join(texts[max(0, n+1-shown):n+1], ",") + "]\n"
			if text := string(bytes.Join(status.parts, nil)); text != want || !status.replaceable {
				t.Errorf("limit %d: status %d is %.100q, want %.100q", limit, n, text, want)
			}
		}
		if limit > 0 && copied > 10+100/limit || len(f.sizes) > shown || cap(f.texts) > 3*shown*(17<<10) {
			t.Errorf("limit %d: 100 texts were copied %d times, and %d bytes are kept", limit, copied, cap(f.texts))
		}
	}
}

// Input that nobody read does not destroy the last words, nor does it if the peer takes them after the close: it gets
// them and the end, no reset.
func TestSocketLastWords(t *testing.T) {
	ours, peer := tcp(t)
	peer.SetReadBuffer(32 << 10) // so that they wait on our side
	c := crew(t, 1).NewConn(ours)
	io.WriteString(peer, "junk\n"+strings.Repeat("more junk\n", 1000))
	mustAsk(t, c, "junk", nil)
	words := strings.Repeat("last words ", 9000)
	c.End(words)
	c.Close()
	if got, err := io.ReadAll(peer); string(got) != words || err != nil {
		t.Errorf("the peer got %d bytes, %v; want %d and the end", len(got), err, len(words))
	}
}

// A peer that does not read is cut off when too much waits; the kernel keeps nothing for it then.
func TestSocketNotReading(t *testing.T) {
	ours, peer := tcp(t)
	c := crew(t, 1).NewConn(ours)
	c.Show(NewNotice(make([]byte, 8<<20))) // more than the buffers hold
	for c.Err() == nil {
		c.Tell("%01000d", 0)
	}
	if n, err := io.Copy(io.Discard, peer); n >= 8<<20 || err == nil || c.Err() != ErrStalled {
		t.Errorf("the peer that was cut off got %d bytes and %v, want a reset; %v", n, err, c.Err())
	}
}

// However many send to however many connections at once: each peer gets whole messages, those of a sender in its order,
// and none is missing. If a connection ends or is cut off meanwhile, none is missing before the last.
func TestSocketManySenders(t *testing.T) {
	const conns, senders, messages = 18, 6, 100
	text := func(sender byte, n int) string {
		return fmt.Sprintln(string('0'+sender), n, strings.Repeat("x", n*7%30+n%10/9*20000)) // a few are large
	}
	w := crew(t, 2)
	var all []*Conn
	var sending, peers sync.WaitGroup
	for i := range conns {
		ours, peer := tcp(t)
		c := w.NewConn(ours)
		all = append(all, c)
		peers.Go(func() {
			c.ReadLine() // until the end
			c.Close()
		})
		peers.Go(func() {
			got, err := io.ReadAll(peer)
			peer.Close()
			came, next := 0, map[byte]int{} // by sender
			for line := range strings.Lines(string(got)) {
				sender := line[0] - '0'
				if want := text(sender, next[sender]); line != want && (i%3 < 2 || !strings.HasPrefix(want, line)) {
					t.Errorf("connection %d got %.100q, want %.100q", i, line, want)
				}
				came++
				next[sender]++
			}
			if i%3 < 2 && err != nil || i%3 == 0 && came != senders*messages {
				t.Errorf("connection %d got %d messages, %v", i, came, err)
			}
		})
	}
	for sender := range byte(senders) {
		sending.Go(func() {
			for n := range messages {
				shared := NewNotice([]byte(text(sender, n)))
				for i, c := range all {
					if c.Show(shared); sender == 0 && n == 5*i && i%3 == 1 {
						c.End("")
					} else if sender == 0 && n == 5*i && i%3 == 2 {
						c.CloseNow()
					}
				}
			}
		})
	}
	sending.Wait()
	for _, c := range all {
		c.End("")
	}
	peers.Wait()
}
