package lineconn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// newPool returns a pool of n writers that ends with the test. Connections that are made after it end before it.
func newPool(t *testing.T, n int) *WriterPool {
	w := NewWriterPool(n)
	t.Cleanup(w.Close)
	return w
}

// pipeConn is a connection over net.Pipe, which has no buffers.
type pipeConn struct {
	*Conn
	end  *pipeEnd // used by Conn
	peer net.Conn
}

// pipeEnd is the end of a net.Pipe. Its CloseWrite does nothing but note that it was called.
type pipeEnd struct {
	net.Conn
	closedWrite bool
	writing     sync.Mutex
}

func (e *pipeEnd) Write(p []byte) (int, error) {
	if !e.writing.TryLock() {
		panic("two writes at the same time") // would hang in virtual time
	}
	defer e.writing.Unlock()
	return e.Conn.Write(p)
}

func (e *pipeEnd) CloseWrite() error {
	e.closedWrite = true
	return nil
}

// newPipeConn returns a connection of the pool that ends with the test.
func newPipeConn(t *testing.T, w *WriterPool) *pipeConn {
	ours, peer := net.Pipe()
	end := &pipeEnd{Conn: ours}
	c := &pipeConn{Conn: w.NewConn(end), end: end, peer: peer}
	t.Cleanup(func() {
		c.CloseNow()
		peer.Close()
	})
	return c
}

// everything is a limit for output that is never reached.
const everything = math.MaxInt64

// wantOutput checks what the peer gets before time passes. It reads at most limit bytes. "(end)" stands for the end of
// the connection.
func (c *pipeConn) wantOutput(t *testing.T, limit int, want string) {
	t.Helper()
	c.peer.SetReadDeadline(time.Now().Add(time.Nanosecond)) // virtual time passes when all goroutines are blocked
	got, err := io.ReadAll(io.LimitReader(c.peer, int64(limit)))
	c.peer.SetReadDeadline(time.Time{})
	if len(got) < limit && !errors.Is(err, os.ErrDeadlineExceeded) {
		got = append(got, "(end)"...)
	}
	if synctest.Wait(); string(got) != want {
		t.Fatalf("the peer got %.100q (%d bytes), want %.100q (%d)", got, len(got), want, len(want))
	}
}

// flush and close have the signature of ReadLine, for async.
func (c *pipeConn) flush() (string, error) { c.Flush(); return "", nil }
func (c *pipeConn) close() (string, error) { c.Close(); return "", nil }

// async makes a call in a goroutine. It returns a channel for the result: a line, or an error in parentheses.
func async(call func() (string, error)) chan string {
	result := make(chan string, 1)
	go func() {
		line, err := call()
		if err != nil {
			line += fmt.Sprintf("(%v)", err)
		}
		result <- line
	}()
	return result
}

// Results of calls.
const (
	blocked = "(blocked)"
	ended   = "(the conversation has ended)"
	stalled = "(the client stopped reading)"
	closed  = "(use of closed network connection)"
)

// wantResult checks the result of a call before time passes.
func wantResult(t *testing.T, result chan string, want string) {
	t.Helper()
	synctest.Wait()
	got := blocked
	select {
	case got = <-result:
	default:
	}
	if got != want {
		t.Fatalf("the call returned %.100q, want %.100q", got, want)
	}
}

// wantErr checks what Err returns.
func wantErr(t *testing.T, c *Conn, want error) {
	t.Helper()
	if err := c.Err(); !errors.Is(err, want) {
		t.Fatalf("Err returned %v, want %v", err, want)
	}
}

// snapshot returns a snapshot with this text.
func snapshot(text string) *Notice { return &Notice{parts: [][]byte{[]byte(text)}, snapshot: true} }

// Sending never waits for a peer that reads nothing. More than 256 KiB pending disconnect it.
func TestMaxPending(t *testing.T) {
	for _, tt := range []struct {
		notice           bool
		prompt, size     int // bytes
		minimum, maximum int // number of messages that may be pending
	}{
		{size: 1000, minimum: 200, maximum: 262},
		{size: 1, minimum: 1000, maximum: 3000},
		{size: 256<<10 - 128, minimum: 1, maximum: 1},
		{size: 256<<10 - 127, minimum: 0, maximum: 0},
		{notice: true, size: 1000, minimum: 200, maximum: 262},
		{notice: true, size: 20000, minimum: 1000, maximum: 3000},
		{notice: true, size: 20000, prompt: 1000, minimum: 200, maximum: 262},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newPipeConn(t, newPool(t, 1))
			c.SetPrompt(strings.Repeat("?", tt.prompt))
			text, start := strings.Repeat("x", tt.size), time.Now()
			for n := range tt.maximum + 1 {
				if n == tt.minimum {
					wantErr(t, c.Conn, nil)
				}
				if tt.notice {
					c.Show(NewNotice([]byte(text)))
				} else {
					c.Tell("%s", text)
				}
			}
			c.Tell("ignored")
			c.Flush()
			c.CloseNow()
			wantErr(t, c.Conn, ErrStalled)
			if took := time.Since(start); took > 0 {
				t.Errorf("%+v: sending took %v", tt, took)
			}
			c.wantOutput(t, everything, "(end)")
		})
	}
}

// A peer that reads one byte within each StallTimeout stays connected. It gets all of a snapshot, then only the newest
// one. A peer that reads nothing is disconnected. Other peers of the same writer do not wait.
func TestStallTimeout(t *testing.T) {
	text := strings.Repeat("01", 1<<20)
	synctest.Test(t, func(t *testing.T) {
		w := newPool(t, 1)
		slow, other := newPipeConn(t, w), newPipeConn(t, w)
		slow.Show(snapshot(text))
		other.Tell("hello")
		other.wantOutput(t, everything, "hello")
		for n := range 100 {
			slow.Show(snapshot(strings.Repeat("x", 10000)))
			slow.Show(snapshot("newest!"))
			time.Sleep(30*time.Second - time.Millisecond)
			slow.wantOutput(t, 1, text[n:n+1])
		}
		slow.wantOutput(t, len(text)-100+len("newest"), text[100:]+"newest")
		line := async(slow.ReadLine)
		time.Sleep(30*time.Second - time.Millisecond)
		wantResult(t, line, blocked)
		time.Sleep(time.Second + time.Millisecond) // one step later at most
		wantResult(t, line, stalled)
	})
}

// A newer snapshot replaces an older one in the queue, but not the current message. All other messages stay in order.
func TestSnapshotReplaced(t *testing.T) {
	for _, tt := range []struct{ current, queued, want string }{ // digits are snapshots
		{queued: "12a3", want: "a3"},
		{current: "a", queued: "12", want: "a2"},
		{current: "a", queued: "1b", want: "a1b"},
		{current: "1", queued: "23", want: "13"},
		{current: "1", queued: "a2b3cd4e", want: "1abcd4e"},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &WriterPool{StallTimeout: time.Hour, ready: make(chan []*Conn, 1)} // this test is the writer
			c := newPipeConn(t, w)
			for _, texts := range []string{tt.current, tt.queued} {
				for _, text := range strings.Split(texts, "") {
					if text <= "9" {
						c.Show(snapshot(text))
					} else {
						c.Tell("%s", text)
					}
				}
				if len(w.ready) > 0 {
					writeReady(<-w.ready)
				}
			}
			c.wantOutput(t, everything, tt.want)
		})
	}
}

// Close waits for End and until the peer has read everything. Then it closes the sending side, and waits for the peer
// to close its side, but only for a second. What is sent after End is dropped.
func TestClose(t *testing.T) {
	for _, tt := range []struct {
		writes      int           // bytes that the peer writes
		hangUpAfter time.Duration // 0 means never
		closedAfter time.Duration // or up to one chunkInterval later
		discarded   bool          // whether all bytes are read
	}{
		{closedAfter: time.Second, discarded: true},
		{hangUpAfter: 300 * time.Millisecond, closedAfter: 300 * time.Millisecond, discarded: true},
		{writes: 100, hangUpAfter: 30 * time.Millisecond, closedAfter: 40 * time.Millisecond, discarded: true},
		{writes: 128 << 10, closedAfter: time.Second, discarded: true}, // more than the kernel holds
		{writes: 256 << 10, closedAfter: time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newPipeConn(t, newPool(t, 1))
			c.SetPrompt("?")
			closing := async(c.close)
			time.Sleep(time.Second)
			c.Tell("before")
			c.End("last message")
			c.End("another one")
			c.Tell("after")
			wantErr(t, c.Conn, errEnded)
			c.wantOutput(t, 11, "before?last")
			time.Sleep(time.Second)
			if wantResult(t, closing, blocked); c.end.closedWrite {
				t.Error("the sending side is closed too early")
			}
			if c.wantOutput(t, 8, " message"); !c.end.closedWrite {
				t.Error("the sending side is not closed")
			}
			discarded := make(chan bool, 1)
			go func() {
				_, err := c.peer.Write(make([]byte, tt.writes))
				discarded <- err == nil
			}()
			if tt.hangUpAfter > 0 {
				time.AfterFunc(tt.hangUpAfter, func() { c.peer.Close() })
			}
			time.Sleep(tt.closedAfter - time.Nanosecond)
			wantResult(t, closing, blocked)
			time.Sleep(chunkInterval + time.Nanosecond)
			wantResult(t, closing, "")
			wantErr(t, c.Conn, net.ErrClosed)
			if got := <-discarded; got != tt.discarded {
				t.Errorf("%+v: discarded: %v", tt, got)
			}
		})
	}
}

// CloseNow ends all waiting calls immediately. The test fails if a goroutine is left behind.
func TestCloseNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPool(t, 1)
		flushing, reading, closing, ended, lingering :=
			newPipeConn(t, w), newPipeConn(t, w), newPipeConn(t, w), newPipeConn(t, w), newPipeConn(t, w)
		flushing.Tell("hello")
		ended.End("bye")
		lingering.End("bye")
		lines, flushes, closes := async(reading.ReadLine), async(flushing.flush), make([]chan string, 3)
		for i, c := range []*pipeConn{closing, ended, lingering} {
			closes[i] = async(c.close)
		}
		lingering.wantOutput(t, 3, "bye")
		for _, call := range append(closes, lines, flushes) {
			wantResult(t, call, blocked)
		}
		for _, c := range []*pipeConn{flushing, reading, closing, ended, lingering} {
			c.CloseNow()
			c.CloseNow()
			c.Tell("ignored")
			c.Close()
			wantErr(t, c.Conn, net.ErrClosed)
			c.wantOutput(t, everything, "(end)")
		}
		wantResult(t, lines, closed)
		for _, call := range append(closes, flushes) {
			wantResult(t, call, "")
		}
	})
}

// tcp returns both ends of a connection that Listen made on 127.0.0.1. control, which may be nil, sets options of the
// peer. The peer's deadline keeps a failing test from hanging.
func tcp(t *testing.T, control func(network, address string, raw syscall.RawConn) error) (ours, peer *net.TCPConn) {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, dialErr := (&net.Dialer{Control: control}).Dial("tcp", l.Addr().String())
	ours, err = l.AcceptTCP()
	if err := errors.Join(err, dialErr); err != nil {
		t.Fatal(err)
	}
	peer = dialed.(*net.TCPConn)
	peer.SetDeadline(time.Now().Add(2 * time.Minute))
	t.Cleanup(func() {
		ours.Close()
		peer.Close()
	})
	return ours, peer
}

// newConn returns a connection of the pool that ends with the test, or after two minutes if the test hangs.
func newConn(t *testing.T, w *WriterPool, c net.Conn) *Conn {
	conn := w.NewConn(c)
	timer := time.AfterFunc(2*time.Minute, func() {
		t.Error("a connection is still open after two minutes")
		conn.CloseNow()
	})
	t.Cleanup(func() {
		timer.Stop()
		conn.CloseNow()
	})
	return conn
}

// Unread input does not destroy the last message, even if the peer reads it only after the connection is closed.
func TestLastMessageArrives(t *testing.T) {
	ours, peer := tcp(t, nil)
	peer.SetReadBuffer(32 << 10) // less than the last message
	c := newConn(t, newPool(t, 1), ours)
	io.WriteString(peer, "junk\n"+strings.Repeat("more junk\n", 1000))
	if line, err := c.ReadLine(); line != "junk" || err != nil {
		t.Fatal(line, err)
	}
	last := strings.Repeat("last message ", 7000)
	c.End(last)
	c.Close()
	if got, err := io.ReadAll(peer); string(got) != last || err != nil {
		t.Errorf("the peer got %d bytes, %v; want %d and the end", len(got), err, len(last))
	}
}

// Each peer gets whole messages, in the order of each sender. Of every three connections, one is ended and one closed
// while goroutines send: only these may miss messages, and only the last ones.
func TestManySenders(t *testing.T) {
	const conns, senders, messages = 18, 6, 100
	text := func(sender, n int) []byte {
		return fmt.Appendln(nil, sender, n, x(n*7%30+n%10/9*20000)) // some are large
	}
	w := newPool(t, 2)
	var all []*Conn
	var sending, receiving sync.WaitGroup
	for i := range conns {
		ours, peer := tcp(t, nil)
		c := newConn(t, w, ours)
		all = append(all, c)
		receiving.Go(func() {
			c.ReadLine() // until the end
			c.Close()
			if i%3 == 0 && c.queue != nil {
				t.Error("the memory of the queue is not freed")
			}
		})
		receiving.Go(func() {
			got, err := io.ReadAll(peer)
			peer.Close()
			lines, next := 0, [senders]int{}
			for line := range bytes.Lines(got) {
				sender := line[0] - '0'
				want := text(int(sender), next[sender])
				if !bytes.HasPrefix(want, line) || len(line) < len(want) && i%3 < 2 {
					t.Errorf("connection %d got %.100q, want %.100q", i, line, want)
				}
				lines++
				next[sender]++
			}
			if i%3 < 2 && err != nil || i%3 == 0 && lines != senders*messages {
				t.Errorf("connection %d got %d messages, %v", i, lines, err)
			}
		})
	}
	for sender := range senders {
		sending.Go(func() {
			for n := range messages {
				whole := text(sender, n)
				shared := NewNotice(nil, whole[:1], whole[1:])
				for i, c := range all {
					c.Show(shared)
					if sender == 0 && n == 5*i && i%3 == 1 {
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
	receiving.Wait()
}
