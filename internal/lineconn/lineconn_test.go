package lineconn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// crew starts n writers for as long as the test runs. Connections must be made, and so registered for their end, after it.
func crew(t *testing.T, n int) *Writers {
	w := NewWriters(n)
	t.Cleanup(w.Close)
	return w
}

// pipe is a connection over net.Pipe, at a prompt, and its peer: no buffers, and virtual time.
func pipe(t *testing.T, w *Writers, prompt string) (*Conn, net.Conn) {
	ours, peer := net.Pipe()
	c := w.Conn(ours)
	c.SetPrompt(prompt)
	t.Cleanup(func() { c.CutOff(); peer.Close() })
	return c, peer
}

// play runs test in virtual time, with a connection, of a crew of one, and its peer.
func play(t *testing.T, test func(t *testing.T, c *Conn, peer net.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1), "")
		test(t, c, peer)
	})
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

// mustRead reads len(want) bytes from peer, which must be want.
func mustRead(t *testing.T, peer io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(peer, got)
	if err != nil || string(got) != want {
		t.Fatalf("the peer got %d bytes, %.100q, %v; want %d, %.100q", n, got[:n], err, len(want), want)
	}
}

// end stands behind what a peer hears for the end.
const end = " (the end)"

// hears checks that peer gets want now, and no more.
func hears(t *testing.T, peer net.Conn, want string) {
	t.Helper()
	peer.SetReadDeadline(time.Now().Add(time.Nanosecond)) // in virtual time: when nobody does anything any more
	got, err := io.ReadAll(peer)
	if err == nil {
		got = append(got, end...)
	}
	if string(got) != want {
		t.Errorf("heard %d bytes, %.100q, %v; want %d, %.100q", len(got), got, err, len(want), want)
	}
	peer.SetReadDeadline(time.Time{})
}

// mustErr checks why c is of no use any more.
func mustErr(t *testing.T, c *Conn, want error) {
	t.Helper()
	if err := c.Err(); !errors.Is(err, want) {
		t.Fatalf("Err is %v, want %v", err, want)
	}
}

// mustTake checks how much time has passed since start.
func mustTake(t *testing.T, start time.Time, want time.Duration) {
	t.Helper()
	if took := time.Since(start); took != want {
		t.Errorf("it took %v, want %v", took, want)
	}
}

// notice and status are texts as they are shown.
func notice(texts ...string) *Notice {
	var parts [][]byte
	for _, text := range texts {
		parts = append(parts, []byte(text))
	}
	return NewNotice(parts...)
}

func status(texts ...string) *Notice {
	n := notice(texts...)
	n.replaceable = true
	return n
}

// Messages arrive whole and in order, whatever parts they have; one without a byte holds up nothing. Connections that
// share a notice read it at their own pace, and nobody changes its bytes. What has been taken does not count any more.
func TestTellOrder(t *testing.T) {
	play(t, func(t *testing.T, c *Conn, peer net.Conn) {
		other, otherPeer := pipe(t, c.writers, "?")
		large := strings.Repeat("0123456789", 20000)
		shared := notice("", "<", "", large, large, "")
		c.Tell("one")
		c.Show(notice("[", "", "1,2,3", "]"))
		c.Show(NewNotice())
		c.Tell("")
		c.Show(shared)
		c.Tell("end")
		other.Show(shared)
		mustRead(t, peer, "one[1,2,3]<0123")
		hears(t, otherPeer, "<"+large+large+"?")
		hears(t, peer, large[4:]+large+"end")
		for range 3 {
			c.Tell("%s", large)
			hears(t, peer, large)
		}
		c.writers = &Writers{} // who have no place for more
		c.Tell("one ")
		c.Tell("two")
		hears(t, peer, "one two")
		if len(shared.parts) != 6 || string(bytes.Join(shared.parts, nil)) != "<"+large+large || cap(c.queue) > 4 {
			t.Error("the notice was modified, or memory for a long queue is kept")
		}
	})
}

// To send does not wait for a peer that reads nothing, and 256 KiB may wait for it; with more it is cut off.
func TestMaxWaiting(t *testing.T) {
	huge := NewNotice(bytes.Repeat([]byte("x"), 1<<20))
	for name, tt := range map[string]struct {
		send        func(c *Conn)
		least, most int // of them may wait
	}{
		"bytes":          {func(c *Conn) { c.Tell("%01000d", 0) }, 200, 262},
		"notices":        {func(c *Conn) { c.Show(NewNotice(make([]byte, 1000))) }, 200, 262},
		"prompts":        {func(c *Conn) { c.SetPrompt(strings.Repeat("?", 1000)); c.Show(huge) }, 200, 262},
		"small messages": {func(c *Conn) { c.Tell("x") }, 1000, 3000}, // each takes some 100 bytes
		"references":     {func(c *Conn) { c.Show(huge) }, 1000, 3000},
		"a large text":   {func(c *Conn) { c.Tell("%0260000d", 0) }, 1, 1},
		"a larger text":  {func(c *Conn) { c.Tell("%0262145d", 0) }, 0, 0},
	} {
		play(t, func(t *testing.T, c *Conn, peer net.Conn) {
			start := time.Now()
			n := -1
			for ; c.Err() == nil; n++ {
				tt.send(c)
			}
			if n < tt.least || n > tt.most {
				t.Errorf("%d messages waited (%s), want %d to %d", n, name, tt.least, tt.most)
			}
			c.Tell("no harm")
			c.Flush() // nothing to wait for
			hears(t, peer, end)
			c.CutOff()
			mustErr(t, c, ErrNotReading) // the first reason stays
			mustTake(t, start, 0)
		})
	}
}

// A status that is begun is finished at the pace of the peer, however slow: a byte every 30 s is enough, and meanwhile
// only the newest other waits. It has to be a byte every 30 s. Others get theirs at once, even from a crew of one.
func TestPatience(t *testing.T) {
	play(t, func(t *testing.T, c *Conn, peer net.Conn) {
		text := strings.Repeat("0123456789", 300<<10)
		c.Show(status(text))
		synctest.Wait()
		start := time.Now()
		other, otherPeer := pipe(t, c.writers, "")
		other.Tell("hello")
		mustRead(t, otherPeer, "hello")
		mustTake(t, start, 0)
		for i := range 100 {
			time.Sleep(30*time.Second - time.Millisecond)
			mustRead(t, peer, text[i:i+1])
			for range 100 {
				c.Show(status(fmt.Sprintf("the newest is %d!", i)))
			}
		}
		mustRead(t, peer, text[100:]+"the newest is 99")
		mustBeCutOff(t, c)
	})
}

// mustBeCutOff waits until c is cut off because its peer takes nothing any more.
func mustBeCutOff(t *testing.T, c *Conn) {
	t.Helper()
	start := time.Now()
	mustAsk(t, c, "", ErrNotReading)
	if took := time.Since(start); took < 30*time.Second || took > 31*time.Second {
		t.Errorf("it was cut off after %v, want 30 s", took)
	}
}

// odd is a connection that is not as others are. Its own side can be ended, which its peer does not notice.
type odd struct {
	net.Conn
	stop     time.Duration // how long the process is stopped, once, in a write
	err      error         // of the network, in each read and write
	ended    time.Time     // the own side
	writes   int
	deadline time.Time // of the writes
}

func (o *odd) CloseWrite() error { o.ended = time.Now(); return nil }

func (o *odd) SetWriteDeadline(t time.Time) error { o.deadline = t; return o.Conn.SetWriteDeadline(t) }

func (o *odd) Read(p []byte) (int, error) {
	if o.err != nil {
		return 3, o.err
	}
	return o.Conn.Read(p)
}

func (o *odd) Write(p []byte) (int, error) {
	if o.writes++; o.err != nil {
		return 3, o.err
	}
	time.Sleep(o.stop)
	o.stop = 0
	return o.Conn.Write(p)
}

// Time in which the process did not run is not the peer's fault. When all is written, no deadline, and so no timer, is left.
func TestPatienceWhenStopped(t *testing.T) {
	play(t, func(t *testing.T, c *Conn, peer net.Conn) {
		o := &odd{Conn: c.net, stop: 40 * time.Second}
		c.net = o
		c.Tell("hello")
		time.Sleep(48 * time.Second)
		mustRead(t, peer, "hello")
		c.Flush()
		mustErr(t, c, nil)
		if o.writes < 2 || !o.deadline.IsZero() {
			t.Errorf("after %d writes, the deadline is %v", o.writes, o.deadline)
		}
	})
}

// A status gives way to a newer one, unless it is begun, which none is that has not reached the crew. All other messages
// stay, in their order. (The test itself is the crew.)
func TestStatus(t *testing.T) {
	for sent, want := range map[string]string{ // digits are statuses; at a bar the crew begins
		"12a3":       "a3",
		"x|12":       "x2",
		"1|23":       "13",
		"1|a2b3cd4e": "1abcd4e",
		"x|1a":       "x1a",
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &Writers{ready: make(chan []*Conn, 1)}
			c, peer := pipe(t, w, "")
			for _, b := range sent + "|" {
				switch {
				case b == '|' && len(w.ready) > 0:
					go (<-w.ready)[0].writePatiently()
					synctest.Wait()
				case b < 'a':
					c.Show(status(string(b)))
				case b < '|':
					c.Show(notice(string(b)))
				}
			}
			hears(t, peer, want)
		})
	}
}

// Close waits for End and until the peer has all; then it ends its own side, waits a second at most for the peer to end
// its own, and closes. After End nothing is sent any more, and what was sent before it arrives.
func TestClose(t *testing.T) {
	for _, tt := range []struct {
		peer func(peer net.Conn) // what the peer does after the last words
		want time.Duration       // from the last words to the close
	}{
		{func(net.Conn) {}, time.Second},
		{func(peer net.Conn) { time.Sleep(300 * time.Millisecond); peer.Close() }, 300 * time.Millisecond},
		{func(peer net.Conn) { peer.Write(make([]byte, 100)); peer.Close() }, 40 * time.Millisecond}, // it takes two reads
		{func(peer net.Conn) {
			if n, _ := peer.Write(make([]byte, 1<<20)); n < 128<<10 || n > 256<<10 { // more than a kernel may hold
				t.Errorf("%d bytes were read, want 128 to 256 KiB", n)
			}
		}, time.Second},
	} {
		play(t, func(t *testing.T, c *Conn, peer net.Conn) {
			o := &odd{Conn: c.net}
			c.net = o
			closed := make(chan time.Time, 1)
			go func() { c.Close(); closed <- time.Now() }()
			time.Sleep(time.Second)
			c.SetPrompt("?")
			c.Tell("before")
			c.End("last words")
			c.End("more words")
			c.Tell("after")
			c.Show(status("after"))
			mustErr(t, c, errEnded)
			mustRead(t, peer, "before?last w")
			time.Sleep(time.Second)
			mustRead(t, peer, "ords")
			last := time.Now()
			tt.peer(peer)
			got := (<-closed).Sub(last) // it may be in a pause when the second is over
			if got < tt.want || got > tt.want+20*time.Millisecond || !o.ended.Equal(last) {
				t.Errorf("closed after %v, the own side after %v; want %v and 0", got, o.ended.Sub(last), tt.want)
			}
			mustErr(t, c, net.ErrClosed)
			if more, _ := io.ReadAll(peer); len(more) > 0 {
				t.Errorf("after End the peer got %q", more)
			}
		})
	}
}

// CutOff ends everything at once, whoever waits for whatever: it leaves no goroutine behind.
func TestCutOff(t *testing.T) {
	for _, wait := range []func(c *Conn){
		func(*Conn) {},
		func(c *Conn) { c.Ask() },
		func(c *Conn) { c.Tell("hello"); c.Ask() },
		func(c *Conn) { c.Tell("hello"); c.Tell("hello"); c.Flush() },
		func(c *Conn) { c.Close() },
		func(c *Conn) { c.Tell("hello"); c.Close() },
		func(c *Conn) { c.End("bye"); c.Close() },
	} {
		play(t, func(t *testing.T, c *Conn, peer net.Conn) {
			var waiting sync.WaitGroup
			waiting.Go(func() { wait(c) })
			synctest.Wait()
			start := time.Now()
			c.CutOff()
			c.CutOff() // no harm
			waiting.Wait()
			mustErr(t, c, net.ErrClosed)
			c.Tell("too late")
			c.Close()
			hears(t, peer, end)
			mustTake(t, start, 0)
		})
	}
}

// Everybody hears an announcement, followed by the prompt of each, but the one left out and those that have left. End is
// the end for all members.
func TestAnnounce(t *testing.T) {
	play(t, func(t *testing.T, gone *Conn, atGone net.Conn) {
		g := NewGroup(time.Hour)
		a, atA := pipe(t, gone.writers, "A?")
		b, atB := pipe(t, gone.writers, "B?")
		all := func(toA, toB, toGone string) {
			t.Helper()
			hears(t, atA, toA)
			hears(t, atB, toB)
			hears(t, atGone, toGone)
		}
		g.Add(a)
		g.Add(gone)
		g.Add(b)
		if !g.Leave(gone) || g.Leave(gone) {
			t.Error("a member can leave once")
		}
		g.Announce(notice("hear ", "this "), b)
		all("hear this A?", "", "")
		a.SetPrompt("")
		again := notice("again ")
		g.Announce(again, nil)
		all("again ", "again B?", "")
		gone.SetPrompt("A?")
		gone.Show(again)
		b.Tell("%d%% of %s ", 5, "it")
		all("", "5% of it B?", "again A?")
		g.End("bye")
		all("bye", "bye", "")
		mustAsk(t, a, "", errEnded)
		if g.Leave(a) || g.Leave(b) {
			t.Error("still members")
		}
	})
}

// All are told before the first is written to. (The test itself is the crew.)
func TestAnnounceQueuesFirst(t *testing.T) {
	w := &Writers{ready: make(chan []*Conn, 3)}
	g := NewGroup(time.Hour)
	for range 100 {
		g.Add(w.Conn(nil))
	}
	g.Announce(notice("all"), nil)
	if first, second := <-w.ready, <-w.ready; len(first) != 64 || len(second) != 36 || len(w.ready) != 0 {
		t.Errorf("the crew was handed %d and %d and more, want 64 and 36", len(first), len(second))
	}
}

// Each member's broadcasts are due by its own clock, and Due rings for the next one.
func TestBroadcastIsDue(t *testing.T) {
	play(t, func(t *testing.T, c *Conn, peer net.Conn) {
		g := NewGroup(10 * time.Second)
		start := time.Now()
		time.Sleep(25 * time.Second) // alone
		b, atB := pipe(t, c.writers, "B?")
		g.Add(c)
		time.Sleep(3 * time.Second)
		g.Add(b)
		for _, ring := range []struct {
			after    time.Duration
			toA, toB string
		}{{35, "[x]", ""}, {38, "", "[x]B?"}, {45, "[x]", ""}, {48, "", ""}, {55, "[x]", ""}} {
			<-g.Due.C
			mustTake(t, start, ring.after*time.Second)
			g.Broadcast(status("[", "x", "]"))
			hears(t, peer, ring.toA)
			hears(t, atB, ring.toB)
			if ring.after == 45 {
				g.Leave(b) // so that it rings for nobody
			}
		}
	})
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
		{status("[", "]"), 1},
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
			statuses = append(statuses, f.Status())
			if part := statuses[n].parts[1]; f.Status() != statuses[n] || &part[len(part)-1] != &f.texts[len(f.texts)-2] {
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
	c := crew(t, 1).Conn(ours)
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
	c := crew(t, 1).Conn(ours)
	c.Show(NewNotice(make([]byte, 8<<20))) // more than the buffers hold
	for c.Err() == nil {
		c.Tell("%01000d", 0)
	}
	mustErr(t, c, ErrNotReading)
	if n, err := io.Copy(io.Discard, peer); n >= 8<<20 || err == nil {
		t.Errorf("the peer that was cut off got %d bytes and %v, want a reset", n, err)
	}
}

// However many send to however many connections at once: each peer gets whole messages, those of a sender in its order,
// and none is missing. If a connection ends or is cut off meanwhile, none is missing before the last.
func TestSocketManySenders(t *testing.T) {
	const conns, senders, messages = 18, 6, 100
	w := crew(t, 2)
	var texts [senders]string
	var all []*Conn
	var sending, peers sync.WaitGroup
	for i := range conns {
		ours, peer := tcp(t)
		c := w.Conn(ours)
		all = append(all, c)
		peers.Go(func() {
			c.Ask() // until the end
			c.Close()
		})
		peers.Go(func() {
			got, err := io.ReadAll(peer)
			peer.Close()
			sending.Wait()
			var came [senders]string
			for line := range bytes.Lines(got) {
				if sender := line[0] - '0'; line[len(line)-1] == '\n' {
					came[sender] += string(line)
				} else if i%3 < 2 {
					t.Errorf("connection %d: the last message is %.100q", i, line)
				}
			}
			for sender, text := range texts {
				got := came[sender]
				if !strings.HasPrefix(text, got) || i%3 == 0 && got != text || i%3 < 2 && err != nil {
					t.Errorf("connection %d: %d bytes of %d of sender %d, %v", i, len(got), len(text), sender, err)
				}
			}
		})
	}
	for sender := range senders {
		sending.Go(func() {
			for n := range messages {
				text := fmt.Sprintln(sender, n, strings.Repeat("x", n*7%30+n%10/9*20000)) // a few are large
				texts[sender] += text
				shared := notice(text)
				for i, c := range all {
					if c.Show(shared); sender == 0 && n == 5*i && i%3 == 1 {
						c.End("")
					} else if sender == 0 && n == 5*i && i%3 == 2 {
						c.CutOff()
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
