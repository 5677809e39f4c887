package lineconn

import (
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipeConn is a connection over net.Pipe, which has no buffers.
type pipeConn struct {
	*Conn
	end  *pipeEnd // used by Conn
	peer net.Conn
}

// pipeEnd is the end of a net.Pipe.
type pipeEnd struct {
	net.Conn
	writing sync.Mutex
	suspend time.Duration // how long the next Write is suspended
}

func (e *pipeEnd) Write(p []byte) (int, error) {
	if !e.writing.TryLock() {
		panic("two writes at the same time") // would hang in virtual time
	}
	defer e.writing.Unlock()
	time.Sleep(e.suspend)
	e.suspend = 0
	return e.Conn.Write(p)
}

// CloseWrite sends a text to the peer, in the place of a half-close.
func (e *pipeEnd) CloseWrite() error {
	e.SetWriteDeadline(time.Time{})
	go io.WriteString(e, "(closed)")
	return nil
}

// newPipeConn returns a connection that ends with the test.
func newPipeConn(t *testing.T) *pipeConn {
	ours, peer := net.Pipe()
	end := &pipeEnd{Conn: ours}
	c := &pipeConn{Conn: NewConn(end), end: end, peer: peer}
	t.Cleanup(func() {
		c.closeBecause(net.ErrClosed)
		peer.Close()
	})
	return c
}

const everything = math.MaxInt // a limit for output that is never reached

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
		t.Errorf("the peer got %.100q (%d bytes), want %.100q (%d)", got, len(got), want, len(want))
	}
}

// readLine returns a line, followed by an error in parentheses.
func readLine(c *pipeConn) string {
	line, err := c.ReadLine()
	if err != nil {
		line += fmt.Sprintf("(%v)", err)
	}
	return line
}

// wantErr checks what Err returns.
func wantErr(t *testing.T, c *Conn, want error) {
	t.Helper()
	if err := c.Err(); !errors.Is(err, want) {
		t.Fatalf("Err returned %v, want %v", err, want)
	}
}

// x returns a string of n bytes.
func x(n int) string { return strings.Repeat("x", n) }

// broadcast broadcasts a snapshot with this text to c alone.
func (c *pipeConn) broadcast(text string) {
	f, g := NewFeed("", "", 1), NewGroup(time.Hour)
	f.Add([]byte(text))
	g.Add(c.Conn)
	c.due = time.Now()
	g.Broadcast(f)
}

// More than 256 KiB pending disconnect a peer that reads nothing.
func TestMaxPending(t *testing.T) {
	for size, messages := range map[int]int{1: 2016, 1000: 232, 256<<10 - 129: 1, 256<<10 - 128: 0} {
		synctest.Test(t, func(t *testing.T) {
			c := newPipeConn(t)
			c.SetPrompt("?")
			for range messages {
				c.Tell("%s", x(size))
			}
			wantErr(t, c.Conn, nil)
			c.Tell("%s", x(size))
			wantErr(t, c.Conn, ErrStalled)
			c.wantOutput(t, everything, "(end)")
		})
	}
}

// A peer that reads one byte within each stallTimeout stays connected. It gets all of the current message and all
// messages in order, but of the snapshots in the queue only the newest. A peer that reads nothing is disconnected, and
// the rest of its input is not read. Other peers do not wait. Time in which this process is suspended does not count.
func TestStallTimeout(t *testing.T) {
	text, messages := strings.Repeat("01", 1<<20), ""
	synctest.Test(t, func(t *testing.T) {
		slow, other := newPipeConn(t), newPipeConn(t)
		slow.steps, other.steps = 30, 30 // on Windows, too
		go io.WriteString(slow.peer, "1\n2\n")
		if line := readLine(slow); line != "1" {
			t.Fatalf("got the line %q", line)
		}
		if slow.broadcast(text); len(slow.queue[0].parts) == 1 {
			t.Error("each peer gets a copy of the snapshot, which costs memory")
		}
		for range 3 { // more than may be pending
			other.Tell("%s", x(100<<10))
			other.wantOutput(t, everything, x(100<<10))
		}
		other.end.suspend = 2990 * time.Second
		other.Tell("late")
		for n := range 100 {
			slow.broadcast(x(10000))
			slow.Tell("%d ", n)
			messages += fmt.Sprint(n, " ")
			slow.broadcast("newest!")
			time.Sleep(30*time.Second - time.Millisecond)
			slow.wantOutput(t, 1, text[n:n+1])
		}
		other.wantOutput(t, everything, "late")
		slow.wantOutput(t, len(text)-100+len(messages+"newest"), text[100:]+messages+"newest")
		start := time.Now()
		line := readLine(slow)
		if took := time.Since(start); line != "(the client did not keep up)" || (took-30*time.Second).Abs() > time.Second {
			t.Errorf("got the line %q after %v", line, took)
		}
	})
}

// Where a Write that times out may have written more than it says, as on Windows, writes are small. A peer that does
// not accept all of one within stallTimeout is disconnected, so that it gets nothing twice.
func TestInexactWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPipeConn(t)
		c.steps = 1
		c.Tell("%s", x(40<<10))
		for _, size := range []int{16 << 10, 16 << 10, 1} {
			time.Sleep(29 * time.Second)
			wantErr(t, c.Conn, nil)
			c.wantOutput(t, size, x(size))
		}
		time.Sleep(2 * time.Second)
		wantErr(t, c.Conn, ErrStalled)
	})
}

// Close waits for End and until the peer has read everything. Then it closes the sending side, and discards input until
// the peer closes its side, but only for a second. What is sent after End is dropped.
func TestClose(t *testing.T) {
	for _, tt := range []struct {
		input                    int           // bytes that the peer sends
		hangUpAfter, closedAfter time.Duration // closed then, or one chunkInterval later
	}{
		{input: 100, hangUpAfter: 30 * time.Millisecond, closedAfter: 40 * time.Millisecond},
		{input: 256 << 10, hangUpAfter: time.Hour, closedAfter: time.Second}, // half of it is more than the kernel holds
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newPipeConn(t)
			c.SetPrompt("?")
			time.AfterFunc(time.Second, func() {
				c.Tell("before")
				c.End("last message")
				c.End("another one")
				c.Tell("after")
				c.wantOutput(t, 11, "before?last")
				time.Sleep(time.Second)
				c.wantOutput(t, 16, " message(closed)")
				time.AfterFunc(tt.hangUpAfter, func() { c.peer.Close() })
				if n, _ := c.peer.Write(make([]byte, tt.input)); n < min(tt.input, 128<<10) || n == 256<<10 {
					t.Errorf("%+v: %d bytes are read", tt, n)
				}
			})
			start := time.Now()
			c.Close()
			if late := time.Since(start) - 2*time.Second - tt.closedAfter; late != 0 && late != chunkInterval {
				t.Errorf("%+v: closed %v late", tt, late)
			}
			wantErr(t, c.Conn, net.ErrClosed)
		})
	}
}

// End and a network error make a waiting ReadLine return, and every later call, even if there is more input. They also
// make Close return. The test fails if a goroutine is left behind.
func TestEnds(t *testing.T) {
	for want, end := range map[error]func(c *pipeConn){
		errEnded:         func(c *pipeConn) { c.End("") },
		io.ErrClosedPipe: func(c *pipeConn) { c.end.Close() },
	} {
		synctest.Test(t, func(t *testing.T) {
			waiting, pasted, silent, unread := newPipeConn(t), newPipeConn(t), newPipeConn(t), newPipeConn(t)
			go io.WriteString(pasted.peer, "1\n2\n")
			readLine(pasted)
			unread.End("bye")
			conns := []*pipeConn{waiting, pasted, silent, unread}
			time.AfterFunc(time.Second, func() {
				for _, c := range conns {
					end(c)
					c.Tell("ignored, or fails")
				}
			})
			for _, c := range []*pipeConn{waiting, waiting, pasted, pasted} {
				if line, err := c.ReadLine(); line != "" || err != want {
					t.Errorf("got the line %q and %v, want %v", line, err, want)
				}
			}
			for _, c := range conns {
				c.Close()
			}
		})
	}
}

// tcp returns both ends of a connection that Listen made on 127.0.0.1. It ends with the test, or after two minutes.
func tcp(t *testing.T) (ours, peer *net.TCPConn) {
	t.Helper()
	l, err := Listen("127.0.0.1:0", log.Default())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, dialErr := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	ours, err = l.AcceptTCP()
	if err := errors.Join(err, dialErr); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{ours, peer} {
		c.SetDeadline(time.Now().Add(2 * time.Minute))
		t.Cleanup(func() { c.Close() })
	}
	return ours, peer
}

// Unread input does not destroy the last message, even if the peer reads it only after the connection is closed.
func TestLastMessageArrives(t *testing.T) {
	ours, peer := tcp(t)
	peer.SetReadBuffer(32 << 10) // less than the last message
	c := NewConn(ours)
	io.WriteString(peer, strings.Repeat("junk\n", 2000))
	c.ReadLine()
	c.End(x(90000))
	c.Close()
	if got, err := io.ReadAll(peer); string(got) != x(90000) || err != nil {
		t.Errorf("the peer got %d bytes, %v; want 90000 and the end", len(got), err)
	}
}
