package lineconn

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// ---- Helpers ----

// crew starts n writers for as long as the test runs. Connections must be made,
// and so registered for their end, after it.
func crew(t *testing.T, n int) *Writers {
	t.Helper()
	w := NewWriters(n)
	t.Cleanup(w.Close)
	return w
}

// pipe is a connection over net.Pipe and its peer: no buffers, and virtual time.
func pipe(t *testing.T, w *Writers) (*Conn, net.Conn) {
	t.Helper()
	ours, peer := net.Pipe()
	c := w.Conn(ours)
	t.Cleanup(func() { c.CutOff(); peer.Close() })
	return c, peer
}

// tcp is both ends of a connection that Listen made over 127.0.0.1. The peer's
// deadline only makes a broken test end.
func tcp(t *testing.T) (ours, peer *net.TCPConn) {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if ours, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	peer = d.(*net.TCPConn)
	peer.SetReadBuffer(128 << 10)
	peer.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { ours.Close(); peer.Close() })
	return ours, peer
}

// typeIn has peer write pieces, a write each, and end.
func typeIn(peer net.Conn, pieces ...string) {
	for _, p := range pieces {
		io.WriteString(peer, p)
	}
	peer.Close()
}

// mustRead reads len(want) bytes from peer, which must be want.
func mustRead(t *testing.T, peer io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(peer, got)
	if err != nil || string(got) != want {
		t.Fatalf("the peer got %s, %v; want %s", short(string(got[:n])), err, short(want))
	}
}

// mustReadAll reads from peer to its end; all of it must be want.
func mustReadAll(t *testing.T, peer io.Reader, want string) {
	t.Helper()
	got, err := io.ReadAll(peer)
	if err != nil || string(got) != want {
		t.Fatalf("the peer got %s, %v; want %s and the end", short(string(got)), err, short(want))
	}
}

// short is s for a message to a person.
func short(s string) string {
	if len(s) > 100 {
		return fmt.Sprintf("%.50q…(%d bytes)", s, len(s))
	}
	return fmt.Sprintf("%q", s)
}

// mustErr checks why c is of no use any more.
func mustErr(t *testing.T, c *Conn, want error) {
	t.Helper()
	if err := c.Err(); !errors.Is(err, want) {
		t.Fatalf("Err is %v, want %v", err, want)
	}
}

// mustBeIdle checks that no connection in this bubble has a goroutine running, beside
// the crew and what the test started itself.
func mustBeIdle(t *testing.T) {
	t.Helper()
	synctest.Wait()
	buf := make([]byte, 4<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "synctest bubble") && strings.Contains(stack, "created by proofofstake/internal/lineconn.(*") {
			t.Errorf("a goroutine is left:\n%s", stack)
		}
	}
}

// status is a status of a text.
func status(text string) *Notice { return NewStatus([]byte(text)) }

// ---- Output ----

// Messages arrive whole and in order, whatever parts they have; a message
// without a byte holds up nothing.
func TestTellOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		large := strings.Repeat("0123456789", 20000)
		c.Tell("one")
		c.Show(NewNotice([]byte("["), nil, []byte("1,2,3"), []byte("]")))
		c.Show(NewNotice())
		c.Tell("")
		c.Show(NewNotice(nil, []byte("<"), nil, []byte(large), []byte(large), nil))
		c.Tell("end")
		mustRead(t, peer, "one[1,2,3]<"+large+large+"end")
		c.Tell("")
		c.Flush()
		c.Tell("more")
		mustRead(t, peer, "more")
	})
}

// Connections share a notice: each gets all of it, however fast it reads, what
// is told meanwhile comes after it, and nobody changes its bytes.
func TestShowShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := crew(t, 2)
		text := strings.Repeat("0123456789", 20000)
		n := NewNotice([]byte("<"), []byte(text), nil, []byte(">"))
		var all sync.WaitGroup
		for i := range 5 {
			c, peer := pipe(t, w)
			c.SetPrompt("?")
			all.Go(func() {
				time.Sleep(time.Second) // so that all show it at once
				c.Show(n)
				c.Tell("more")
				for piece := range strings.SplitAfterSeq("<"+text+">?more?", "0000") {
					time.Sleep(time.Duration(i) * time.Second)
					mustRead(t, peer, piece)
					if len(piece) == 5 {
						c.Tell("more")
					}
				}
			})
		}
		all.Wait()
		if !reflect.DeepEqual(n.parts, [][]byte{[]byte("<"), []byte(text), nil, []byte(">")}) {
			t.Error("the notice was modified")
		}
	})
}

// To send does not wait for a peer that reads nothing, and 256 KiB may wait for it;
// with more it is cut off.
func TestMaxWaiting(t *testing.T) {
	huge := NewNotice(bytes.Repeat([]byte("x"), 1<<20))
	tests := []struct {
		name        string
		send        func(c *Conn)
		least, most int // of them may wait
	}{
		{"bytes", func(c *Conn) { c.Tell("%01000d", 0) }, 200, 262},
		{"notices", func(c *Conn) { c.Show(NewNotice(make([]byte, 1000))) }, 200, 262},
		{"prompts", func(c *Conn) { c.SetPrompt(strings.Repeat("?", 1000)); c.Show(huge) }, 200, 262},
		{"small messages", func(c *Conn) { c.Tell("x") }, 1000, 3000}, // each takes some 100 bytes
		{"references", func(c *Conn) { c.Show(huge) }, 1000, 3000},
		{"a large text", func(c *Conn) { c.Tell("%0260000d", 0) }, 1, 1},
		{"a larger text", func(c *Conn) { c.Tell("%0262145d", 0) }, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, peer := pipe(t, crew(t, 1))
				start := time.Now()
				n := -1
				for ; c.Err() == nil; n++ {
					tt.send(c)
				}
				if n < tt.least || n > tt.most {
					t.Errorf("%d messages waited, want %d to %d", n, tt.least, tt.most)
				}
				c.Tell("no harm")
				c.Flush() // nothing to wait for
				mustReadAll(t, peer, "")
				c.CutOff()
				mustErr(t, c, ErrNotReading) // the first reason stays
				mustBeIdle(t)
				if took := time.Since(start); took != 0 {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// What has been taken does not count any more.
func TestMaxWaitingIsFreed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		for range 10 {
			for range 2 {
				c.Tell("%0100000d", 0)
			}
			mustRead(t, peer, strings.Repeat("0", 200000))
			c.Flush()
		}
		mustErr(t, c, nil)
	})
}

// A peer that takes nothing is cut off after 10 s; meanwhile the others get
// theirs at once, even from a crew of one.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := crew(t, 1)
		stuck, _ := pipe(t, w)
		other, peer := pipe(t, w)
		n := NewNotice([]byte("the same for all\n"))
		stuck.Show(n)
		synctest.Wait()
		start := time.Now()
		other.Show(n)
		mustRead(t, peer, "the same for all\n")
		if took := time.Since(start); took != 0 {
			t.Errorf("the other waited %v", took)
		}
		time.Sleep(30*time.Second - time.Nanosecond)
		synctest.Wait()
		mustErr(t, stuck, nil)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		mustErr(t, stuck, ErrNotReading)
		if typed, err := stuck.Ask(); err != ErrNotReading {
			t.Errorf("Ask of a connection that is cut off returns %q, %v", typed, err)
		}
		mustErr(t, other, nil)
		mustBeIdle(t)
	})
}

// A status that is begun is finished at the pace of the peer, however slow: a byte
// every 10 s is enough, and meanwhile only the newest other waits. It has to be
// a byte every 10 s.
func TestPatienceWithSlowPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		text := strings.Repeat("0123456789", 300<<10)
		c.Show(status(text))
		for i := range 100 {
			time.Sleep(30*time.Second - time.Millisecond)
			mustRead(t, peer, text[i:i+1])
			for range 100 {
				c.Show(status(fmt.Sprintf("the newest is %d!", i)))
			}
		}
		mustRead(t, peer, text[100:]+"the newest is 99")
		start := time.Now()
		c.Flush()
		mustErr(t, c, ErrNotReading)
		if took := time.Since(start); took < 30*time.Second || took > 31*time.Second {
			t.Errorf("it was cut off after %v, want 30 s", took)
		}
	})
}

// stopped is a connection of a process that is stopped for 40 s in its first write.
type stopped struct {
	net.Conn
	once sync.Once
}

func (s *stopped) Write(p []byte) (int, error) {
	s.once.Do(func() { time.Sleep(40 * time.Second) })
	return s.Conn.Write(p)
}

// Time in which the process did not run is not the peer's fault.
func TestPatienceWhenStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, peer := net.Pipe()
		c := crew(t, 1).Conn(&stopped{Conn: ours})
		c.Tell("hello")
		time.Sleep(48 * time.Second)
		mustRead(t, peer, "hello")
		c.Flush()
		mustErr(t, c, nil)
	})
}

// A status gives way to a newer one, unless it is begun. All other messages
// stay, in their order.
func TestStatus(t *testing.T) {
	begun := NewNotice([]byte("(begun)"))
	text := func(s string) *Notice { return NewNotice([]byte(s)) }
	tests := []struct {
		name  string
		begun *Notice // half of it is read before the others are sent
		sent  []*Notice
		want  string
	}{
		{"not begun", begun, []*Notice{status("old"), status("new")}, "(begun)new"},
		{"begun", status("(begun)"), []*Notice{status("old"), status("new")}, "(begun)new"},
		{"others keep their order", status("(begun)"),
			[]*Notice{text("a"), status("1"), text("b"), status("2"), text("c"), text("d"), status("3"), text("e")}, "(begun)abcd3e"},
		{"another message replaces nothing", begun, []*Notice{status("1"), text("a")}, "(begun)1a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, peer := pipe(t, crew(t, 1))
				c.Show(tt.begun)
				mustRead(t, peer, "(")
				for _, n := range tt.sent {
					c.Show(n)
				}
				c.End("")
				go c.Close()
				mustReadAll(t, peer, tt.want[1:])
			})
		})
	}
}

// What has not reached the crew is not begun, and neither is a status that
// comes after a message that was. (The test itself is the crew.)
func TestStatusBeforeCrew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &Writers{ready: make(chan []*Conn, 1)}
		c, peer := pipe(t, w)
		for range 2 {
			c.Show(status("old"))
			c.Show(status("new"))
			c.Tell(".")
			go (<-w.ready)[0].writePatiently()
			mustRead(t, peer, "new.")
			synctest.Wait()
		}
	})
}

// A message that finds no place at the crew is written nevertheless.
func TestTellWithoutPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, &Writers{ready: make(chan []*Conn)}) // nobody receives
		c.Tell("one ")
		c.Tell("two")
		mustRead(t, peer, "one two")
	})
}

// ---- Flush, End, Close, CutOff ----

// Flush returns when the last byte is taken, not before.
func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		c.Flush() // nothing is sent
		start := time.Now()
		c.Tell("one ")
		c.Tell("two")
		flushed := make(chan time.Time, 1)
		go func() { c.Flush(); flushed <- time.Now() }()
		time.Sleep(3 * time.Second)
		mustRead(t, peer, "one tw")
		time.Sleep(4 * time.Second)
		mustRead(t, peer, "o")
		if took := (<-flushed).Sub(start); took != 7*time.Second {
			t.Errorf("Flush returned after %v, want 7s", took)
		}
	})
}

// After End nothing is sent any more, and what was sent before it arrives.
func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		c.SetPrompt("?")
		c.Tell("before")
		c.End("last words")
		c.End("more words")
		c.Tell("after")
		c.Show(status("after"))
		mustErr(t, c, nil)
		go c.Close()
		mustReadAll(t, peer, "before?last words")
		synctest.Wait()
		mustErr(t, c, net.ErrClosed)
	})
}

// halfPipe is a pipe that can end its own side, which its peer does not notice.
type halfPipe struct {
	net.Conn
	ended chan struct{}
}

func (p halfPipe) CloseWrite() error { close(p.ended); return nil }

// isEnded reports whether the own side is ended.
func (p halfPipe) isEnded() bool {
	synctest.Wait()
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// Close waits for End and until the peer has all; then it ends its own side,
// waits a second at most for the peer to end its own, and closes.
func TestClose(t *testing.T) {
	tests := []struct {
		name string
		peer func(peer net.Conn) // what the peer does after the last words
		want time.Duration       // from the last words to the close
	}{
		{"a peer that stays", func(net.Conn) {}, time.Second},
		{"a peer that leaves", func(peer net.Conn) { time.Sleep(300 * time.Millisecond); peer.Close() }, 300 * time.Millisecond},
		{"a peer that writes and leaves", func(peer net.Conn) { typeIn(peer, "more", "and more") }, 40 * time.Millisecond},
		{"a peer that writes on and on", func(peer net.Conn) {
			for _, err := peer.Write(make([]byte, 100)); err == nil; _, err = peer.Write(make([]byte, 100)) {
			}
		}, time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, peer := net.Pipe()
				half := halfPipe{ours, make(chan struct{})}
				c := crew(t, 1).Conn(half)
				closed := make(chan time.Time, 1)
				go func() { c.Close(); closed <- time.Now() }()
				time.Sleep(time.Second)
				if half.isEnded() {
					t.Fatal("the own side is ended before End")
				}
				c.End("last words")
				mustRead(t, peer, "last w")
				time.Sleep(time.Second)
				if half.isEnded() {
					t.Fatal("the own side is ended before all is written")
				}
				mustRead(t, peer, "ords")
				last := time.Now()
				if !half.isEnded() {
					t.Error("the own side is not ended")
				}
				tt.peer(peer)
				// It may be in a pause when the second is over.
				if got := (<-closed).Sub(last); got < tt.want || got > tt.want+20*time.Millisecond {
					t.Errorf("closed after %v, want %v", got, tt.want)
				}
				mustErr(t, c, net.ErrClosed)
			})
		})
	}
}

// What a peer that has been told goodbye still sends is read at a measured pace,
// which is fast enough for all that the kernel may hold of it.
func TestClosePace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, peer := net.Pipe()
		c := crew(t, 1).Conn(halfPipe{ours, make(chan struct{})})
		c.End("")
		go c.Close()
		total := 0
		for n, err := 0, error(nil); err == nil; total += n {
			n, err = peer.Write(make([]byte, 64<<10))
		}
		if total < 128<<10 || total > 256<<10 {
			t.Errorf("%d bytes were read, want 128 to 256 KiB", total)
		}
	})
}

// CutOff ends everything at once, whoever waits for whatever: it leaves no
// goroutine behind.
func TestCutOff(t *testing.T) {
	tests := []struct {
		name string
		wait func(c *Conn)
	}{
		{"nobody waits", func(*Conn) {}},
		{"in Ask", func(c *Conn) { c.Ask() }},
		{"in Flush", func(c *Conn) { c.Flush() }},
		{"in Close, before End", func(c *Conn) { c.Close() }},
		{"in Close, after End", func(c *Conn) { c.End("bye"); c.Close() }},
	}
	for _, tt := range tests {
		for _, busy := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/busy %v", tt.name, busy), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, peer := pipe(t, crew(t, 1))
					if busy {
						for range 10 {
							c.Tell("nobody reads this")
						}
					}
					var waiting sync.WaitGroup
					waiting.Go(func() { tt.wait(c) })
					synctest.Wait()
					start := time.Now()
					c.CutOff()
					c.CutOff() // no harm
					waiting.Wait()
					mustBeIdle(t)
					mustErr(t, c, net.ErrClosed)
					c.Tell("too late")
					c.Close()
					mustReadAll(t, peer, "")
					if took := time.Since(start); took != 0 {
						t.Errorf("it took %v", took)
					}
				})
			})
		}
	}
}

// ---- Sockets ----

// Input that nobody read does not destroy the last words, nor does it if the peer takes them after
// the close: it gets them and the end, no reset.
func TestSocketLastWords(t *testing.T) {
	ours, peer := tcp(t)
	peer.SetReadBuffer(32 << 10) // so that they wait on our side
	c := crew(t, 1).Conn(ours)
	io.WriteString(peer, "junk\n"+strings.Repeat("more junk\n", 1000))
	if typed, err := c.Ask(); typed != "junk" || err != nil {
		t.Fatal(typed, err)
	}
	words := strings.Repeat("last words ", 9000)
	c.End(words)
	c.Close()
	mustErr(t, c, net.ErrClosed)
	mustReadAll(t, peer, words)
}

// A peer that does not read holds up nobody, and is cut off when too much waits;
// the kernel keeps nothing for it then.
func TestSocketNotReading(t *testing.T) {
	w := crew(t, 1)
	ours, stuckPeer := tcp(t)
	stuck := w.Conn(ours)
	ours, peer := tcp(t)
	other := w.Conn(ours)
	stuck.Show(NewNotice(make([]byte, 8<<20))) // more than the buffers hold
	for stuck.Err() == nil {
		stuck.Tell("%01000d", 0)
		other.Tell("hello\n")
		mustRead(t, peer, "hello\n")
	}
	mustErr(t, stuck, ErrNotReading)
	stuck.Flush()
	if n, err := io.Copy(io.Discard, stuckPeer); n >= 8<<20 || err == nil {
		t.Errorf("the peer that was cut off got %d bytes and %v, want a reset", n, err)
	}
	other.Tell("still here")
	mustRead(t, peer, "still here")
}

// A reset ends the connection, and nothing else.
func TestSocketReset(t *testing.T) {
	w := crew(t, 1)
	for name, notice := range map[string]func(c *Conn){
		"by a read":  func(c *Conn) { c.Ask() },
		"by a write": func(c *Conn) { c.Tell("anybody there?"); c.Flush() },
	} {
		ours, peer := tcp(t)
		c := w.Conn(ours)
		peer.SetLinger(0)
		peer.Close()
		notice(c)
		if err := c.Err(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("noticed %s: %v", name, err)
		}
		c.Tell("no")
		c.Close()
	}
	ours, peer := tcp(t)
	w.Conn(ours).Tell("the crew goes on")
	mustRead(t, peer, "the crew goes on")
}

// However many send to however many connections at once: each peer gets whole
// messages, those of a sender in its order, and none is missing. If a connection
// ends or is cut off meanwhile, none is missing before the last.
func TestSocketManySenders(t *testing.T) {
	const conns, senders, messages = 18, 6, 100
	filler := strings.Repeat("x", 20000)
	w := crew(t, 2)
	var all []*Conn
	var reading, sending, serving sync.WaitGroup
	for i := range conns {
		ours, peer := tcp(t)
		c := w.Conn(ours)
		all = append(all, c)
		serving.Go(func() {
			c.Ask() // until the end
			c.Close()
		})
		reading.Go(func() {
			in := bufio.NewReader(peer)
			came, total := map[int]int{}, 0
			for ; ; total++ {
				line, err := in.ReadString('\n')
				if err == io.EOF && line == "" || err != nil && i%3 == 2 {
					break
				}
				var sender, n, size int
				fmt.Sscan(line, &sender, &n, &size)
				if want := fmt.Sprintln(sender, came[sender], size, filler[:size]); line != want || err != nil {
					t.Errorf("connection %d: got %s, %v, want %s", i, short(line), err, short(want))
					break
				}
				came[sender]++
				switch {
				case total == 20*i && i%3 == 1:
					c.End("")
				case total == 20*i && i%3 == 2:
					c.CutOff()
				}
			}
			if total != senders*messages && i%3 == 0 {
				t.Errorf("connection %d: %d messages arrived, want %d", i, total, senders*messages)
			}
			peer.Close()
		})
	}
	for sender := range senders {
		sending.Go(func() {
			for n := range messages {
				size := n * 7 % 30
				if n%10 == 0 {
					size = len(filler)
				}
				notice := NewNotice(fmt.Appendln(nil, sender, n, size, filler[:size])) // shared by all connections
				for _, c := range all {
					c.Show(notice)
				}
			}
		})
	}
	sending.Wait()
	for _, c := range all {
		c.End("")
	}
	reading.Wait()
	serving.Wait()
}
