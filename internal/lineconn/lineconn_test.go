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
	"sync/atomic"
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

// pipeEnd is the end of a net.Pipe. Its CloseWrite does nothing but note that it was called.
type pipeEnd struct {
	net.Conn
	remote      net.Addr
	closedWrite bool
	writing     sync.Mutex
	beforeWrite func() // called by Write, if not nil
	onStall     func() // called when Conn disconnects the peer because it is stalled, if not nil
}

func (e *pipeEnd) Write(p []byte) (int, error) {
	if !e.writing.TryLock() {
		panic("two writes at the same time") // would hang in virtual time
	}
	defer e.writing.Unlock()
	if e.beforeWrite != nil {
		e.beforeWrite()
	}
	return e.Conn.Write(p)
}

func (e *pipeEnd) SetLinger(int) error {
	if e.onStall != nil {
		e.onStall()
	}
	return nil
}

func (e *pipeEnd) RemoteAddr() net.Addr { return e.remote }

func (e *pipeEnd) CloseWrite() error {
	e.closedWrite = true
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

// everything is a limit for output that is never reached.
const everything = math.MaxInt

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
	for _, tt := range []struct{ text, prompt, messages int }{ // bytes, and how many messages may be pending
		{text: 1000, messages: 232},
		{text: 1, messages: 2032},
		{text: 256<<10 - 128, messages: 1},
		{text: 256<<10 - 127, messages: 0},
		{text: 20000, prompt: 1000, messages: 12},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newPipeConn(t)
			c.SetPrompt(x(tt.prompt))
			for range tt.messages {
				c.Tell("%s", x(tt.text))
			}
			wantErr(t, c.Conn, nil)
			c.Tell("%s", x(tt.text))
			c.closeBecause(net.ErrClosed) // does not change the error
			wantErr(t, c.Conn, ErrStalled)
			c.flush()
			c.wantOutput(t, everything, "(end)")
		})
	}
}

// A peer that reads one byte within each StallTimeout stays connected. It gets all of the current message and all
// messages in order, but of the snapshots in the queue only the newest. A peer that reads nothing is disconnected, and
// the rest of its input is not read. Other peers do not wait. Time in which this process is suspended, here in a
// write, does not count.
func TestStallTimeout(t *testing.T) {
	text, messages := strings.Repeat("01", 1<<20), ""
	synctest.Test(t, func(t *testing.T) {
		slow, other := newPipeConn(t), newPipeConn(t)
		slow.steps, other.steps = 30, 30 // on Windows, too
		go io.WriteString(slow.peer, "1\n2\n")
		if line := readLine(slow); line != "1" {
			t.Fatalf("got the line %q", line)
		}
		slow.broadcast(text)
		for range 3 { // more than may be pending
			other.Tell("%s", x(100<<10))
			other.wantOutput(t, everything, x(100<<10))
		}
		other.end.beforeWrite = sync.OnceFunc(func() { time.Sleep(2990 * time.Second) })
		other.Tell("late")
		for n := range 100 {
			slow.broadcast(x(10000))
			slow.Tell("%d ", n)
			messages += fmt.Sprint(n, " ")
			slow.broadcast("newest!")
			time.Sleep(30*time.Second - time.Millisecond)
			slow.wantOutput(t, 1, text[n:n+1])
		}
		if other.wantOutput(t, everything, "late"); other.queue != nil {
			t.Error("the memory of the queue is not freed")
		}
		slow.wantOutput(t, len(text)-100+len(messages+"newest"), text[100:]+messages+"newest")
		start := time.Now()
		line := readLine(slow)
		if took := time.Since(start); line != "(the client did not keep up)" || took < 30*time.Second-time.Millisecond ||
			took > 31*time.Second { // one step later at most
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

// Close waits for End and until the peer has read everything. Then it closes the sending side, and waits for the peer
// to close its side, but only for a second. What is sent after End is dropped.
func TestClose(t *testing.T) {
	for _, tt := range []struct {
		writes      int           // bytes that the peer writes
		hangUpAfter time.Duration // longer than a second means never
		closedAfter time.Duration // or one chunkInterval later
		discarded   bool          // whether all bytes are read
	}{
		{writes: 100, hangUpAfter: 30 * time.Millisecond, closedAfter: 40 * time.Millisecond, discarded: true},
		{writes: 128 << 10, hangUpAfter: time.Hour, closedAfter: time.Second, discarded: true}, // more than the kernel holds
		{writes: 256 << 10, hangUpAfter: time.Hour, closedAfter: time.Second},
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
				if c.end.closedWrite {
					t.Error("the sending side is closed too early")
				}
				if c.wantOutput(t, 8, " message"); !c.end.closedWrite {
					t.Error("the sending side is not closed")
				}
				time.AfterFunc(tt.hangUpAfter, func() { c.peer.Close() })
				_, err := c.peer.Write(make([]byte, tt.writes))
				if discarded := err == nil; discarded != tt.discarded {
					t.Errorf("%+v: discarded: %v", tt, discarded)
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

// End and a network error make a waiting ReadLine return, and every later call, even if there is more input. A network
// error also makes Close return, whatever it waits for. The test fails if a goroutine is left behind.
func TestEnds(t *testing.T) {
	for _, tt := range []struct {
		end    func(c *pipeConn)
		line   string
		closed int32         // how many of two waiting calls of Close return
		close  time.Duration // how long a later call takes
	}{
		{end: func(c *pipeConn) { c.End("") }, line: "(the conversation has ended)", close: time.Second},
		{end: func(c *pipeConn) { c.end.Close() }, line: "(io: read/write on closed pipe)", closed: 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			waiting, pasted, silent, unread := newPipeConn(t), newPipeConn(t), newPipeConn(t), newPipeConn(t)
			go io.WriteString(pasted.peer, "1\n2\n")
			readLine(pasted)
			unread.End("bye")
			var closed atomic.Int32
			for _, c := range []*pipeConn{silent, unread} {
				go func() {
					c.Close()
					closed.Add(1)
				}()
			}
			time.AfterFunc(time.Second, func() {
				for _, c := range []*pipeConn{unread, silent, pasted} {
					tt.end(c)
					c.Tell("ignored, or fails")
				}
				synctest.Wait()
				tt.end(waiting)
			})
			for _, c := range []*pipeConn{waiting, waiting, pasted, pasted} {
				if line := readLine(c); line != tt.line {
					t.Errorf("got the line %q, want %q", line, tt.line)
				}
			}
			if synctest.Wait(); closed.Load() != tt.closed {
				t.Errorf("%d calls of Close have returned, want %d", closed.Load(), tt.closed)
			}
			start := time.Now()
			waiting.Close()
			if took := time.Since(start); took != tt.close {
				t.Errorf("Close took %v, want %v", took, tt.close)
			}
		})
	}
}

// tcp returns both ends of a connection that Listen made on 127.0.0.1. It ends with the test, or after two minutes if
// the test hangs.
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
	timer := time.AfterFunc(2*time.Minute, func() {
		t.Error("a connection is still open after two minutes")
		ours.Close()
	})
	t.Cleanup(func() {
		timer.Stop()
		ours.Close()
		peer.Close()
	})
	return ours, peer
}

// Unread input does not destroy the last message, even if the peer reads it only after the connection is closed.
func TestLastMessageArrives(t *testing.T) {
	ours, peer := tcp(t)
	peer.SetReadBuffer(32 << 10) // less than the last message
	c := NewConn(ours)
	io.WriteString(peer, strings.Repeat("junk\n", 2000))
	c.ReadLine()
	last := x(90000)
	c.End(last)
	c.Close()
	if got, err := io.ReadAll(peer); string(got) != last || err != nil {
		t.Errorf("the peer got %d bytes, %v; want %d and the end", len(got), err, len(last))
	}
}

// A peer gets whole messages, in the order of each sender. A connection that is ended while goroutines send misses only
// the last messages.
func TestManySenders(t *testing.T) {
	for try := range 12 {
		ours, peer := tcp(t)
		c := NewConn(ours)
		var sent, got [6]string // by each sender in all
		var sending sync.WaitGroup
		for sender := range sent {
			sending.Go(func() {
				for n := range 100 {
					text := fmt.Sprintln(sender, n, x(n*7%30+n/99*20000)) // the last is large
					sent[sender] += text
					c.Show([]byte(text))
					if sender == 0 && n == 5*try && try%2 == 1 {
						c.End("")
					}
				}
			})
		}
		go func() {
			sending.Wait()
			c.End("")
			c.Close()
		}()
		output, err := io.ReadAll(peer)
		for line := range strings.Lines(string(output)) {
			got[line[0]-'0'] += line
		}
		sending.Wait()
		for i := range sent {
			if err != nil || got[i] != sent[i] && (try%2 == 0 || !strings.HasPrefix(sent[i], got[i])) {
				t.Errorf("got %.100q of sender %d, %v", got[i], i, err)
			}
		}
	}
}
