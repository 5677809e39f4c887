// Package lineconn exchanges lines of text with untrusted peers, over any net.Conn. A peer may send too much, send too
// fast, send endless lines, read nothing, close one side of the connection or vanish.
//
// A [Server] accepts connections. One goroutine per connection reads its input, by calling [Conn.ReadLine]. Output goes
// to a queue, which never blocks, and is written by a [WriterPool]. So an idle connection costs one goroutine (its
// reader) and a few hundred bytes. If the kernel does not accept a write immediately, a temporary goroutine finishes
// it. So a stalled peer delays no other peer.
//
// A peer that accepts some output every 10 s is slow, but not stalled, and stays connected unless more than MaxPending
// is pending. Before Linux 6.15, the kernel also disconnects a peer whose receive buffer stays almost full for 50 s.
//
// Everything works best on Linux. Elsewhere each message takes a goroutine while it is written, and a peer must accept
// some kilobytes to count as slow (on Windows, 16 KiB every 30 s). The system decides how much input it buffers, and
// how soon it notices a vanished peer.
package lineconn

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// MaxPending is the limit of pending messages in bytes. A peer that exceeds it is disconnected. A message counts as
	// its text plus messageCost, even if peers share it, because each may be the last that has it. Only a snapshot
	// does not count: its texts are in memory anyway.
	MaxPending = 256 << 10

	messageCost = 128      // bytes, about what a message takes besides its text
	joinLimit   = 16 << 10 // bytes up to which a notice and the prompt are joined, so that one write sends them
	maxWrite    = 16 << 10 // bytes in a blocking write; few, because on Windows it must end within StallTimeout
	batchSize   = 64       // connections that a writer takes at a time; few, so that all writers finish together
)

// ErrStalled is the error of a connection whose peer accepted too little of what was sent to it.
var ErrStalled = errors.New("the client stopped reading")
var errEnded = errors.New("the conversation has ended")

// Listen listens on a TCP address, host:port. A peer that vanishes is noticed within two minutes of silence. On Linux,
// it is also noticed within a minute of the first message sent to it, and the kernel's buffers for a peer are bounded.
// Where the kernel lacks a socket option for that, Listen works without it, and logs what is missing.
func Listen(addr string, l *log.Logger) (*net.TCPListener, error) {
	ln, warning, err := listen(addr, options())
	if warning != nil {
		l.Printf("%s; the server works without", strings.ReplaceAll(warning.Error(), "\n", "; "))
	}
	return ln, err
}

// listen listens with these socket options. warning is an error for each that cannot be set, all joined.
func listen(addr string, options []option) (ln *net.TCPListener, warning, err error) {
	config := net.ListenConfig{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 6},
		Control: func(_, _ string, raw syscall.RawConn) error {
			warning = setOptions(raw, options)
			return nil
		},
	}
	config.SetMultipathTCP(false) // Multipath TCP does not support all of the options
	l, err := config.Listen(context.Background(), "tcp", addr)
	ln, _ = l.(*net.TCPListener) // nil if there is an error
	return ln, warning, err
}

// WriterPool is a fixed set of goroutines that write for the connections it made. They share the work of an
// announcement evenly. Giving each goroutine a fixed share of the connections would take 7% longer.
type WriterPool struct {
	// StallTimeout is how long a peer may accept nothing, while output is pending, before it is disconnected. It is
	// counted in steps, so that a pause of this process counts as one step at most. The default of 30 s leaves a slow
	// peer, which accepts something every 10 s, time to spare. Tests shorten it, before they make a connection.
	StallTimeout time.Duration

	steps   int            // parts of StallTimeout, after each of which the progress of a peer is checked
	ready   chan []*Conn   // connections with pending output that no goroutine is writing
	running sync.WaitGroup // the writers and the blocking writes
}

// NewWriterPool starts a pool of n goroutines. One per processor is enough, because none of them ever waits for a peer.
func NewWriterPool(n int) *WriterPool {
	w := &WriterPool{StallTimeout: 30 * time.Second, steps: 30, ready: make(chan []*Conn, 1024)}
	if runtime.GOOS == "windows" {
		w.steps = 1 // a Write that times out may have written more than it says (golang.org/issue/24727)
	}
	for range n {
		w.running.Go(func() {
			for conns := range w.ready {
				writeReady(conns)
			}
		})
	}
	return w
}

// Close ends the pool. All of its connections must be closed before, and nothing may be sent to them afterwards.
func (w *WriterPool) Close() {
	close(w.ready)
	w.running.Wait()
}

// startWriting hands conns, which have one pool, to its writers. It may wait for other writes, but never for a peer.
func startWriting(conns []*Conn) {
	for batch := range slices.Chunk(conns, batchSize) {
		batch[0].pool.ready <- batch
	}
}

// writeReady writes the pending messages of conns, as far as the kernel accepts them immediately. If the kernel accepts
// nothing, for whatever reason, a blocking write takes over.
func writeReady(conns []*Conn) {
	for _, c := range conns {
		n := 0
		for p := c.next(0); p != nil; p = c.next(n) {
			if n = writeNow(c.raw, p); n == 0 {
				c.pool.running.Go(c.writeBlocking)
				break
			}
		}
	}
}

// Conn is one connection. Any goroutine may call its methods, with two exceptions: ReadLine and Close belong to one
// goroutine, the reader. SetPrompt belongs to the owner of the Group, and must not run while Tell or Show does.
type Conn struct {
	net  net.Conn
	raw  syscall.RawConn // nil if net is not a socket
	pool *WriterPool

	// Owned by the owner of the group.
	prompt string
	due    time.Time // of the next broadcast

	mu      sync.Mutex // guards the fields below; never held while waiting
	changed sync.Cond  // signals that all is written, or that err is set
	writing bool       // whether pool.ready or a goroutine has taken charge of the pending messages
	ended   bool       // whether End was called
	err     error      // why the connection is closed, or nil
	current *message   // being written, or nil
	offset  int        // of the next byte to write in current
	queue   []*message // after current
	pending int        // cost of current and queue

	// Owned by the reader.
	buffer     [readBuffer]byte
	unread     []byte    // the rest of the input in buffer
	nextFree   time.Time // when the rate limit has forgotten the input so far
	inputEnded bool
	skipLine   bool // whether to discard input up to the end of the line
	state      state
}

// NewConn returns a connection that uses c and owns it.
func (w *WriterPool) NewConn(c net.Conn) *Conn {
	conn := &Conn{net: c, pool: w}
	conn.changed.L = &conn.mu
	if s, ok := c.(syscall.Conn); ok {
		conn.raw, _ = s.SyscallConn() // nil if there is an error; then all writes are blocking writes
	}
	if s, ok := c.(*net.TCPConn); ok && runtime.GOOS != "linux" {
		s.SetWriteBuffer(64 << 10) // a large buffer would take minutes to show the progress of a slow peer
	}
	return conn
}

// Tell sends a text to the peer, formatted as by fmt.Sprintf, followed by the prompt. Once the connection has ended or
// failed, Tell and Show do nothing.
func (c *Conn) Tell(format string, args ...any) {
	c.send(newMessage(fmt.Sprintf(format, args...)+c.prompt), false)
}

// Show sends a notice to the peer, followed by the prompt.
func (c *Conn) Show(n *Notice) { c.send(n.withPrompt(c.prompt), false) }

// End sends the last message, which may be empty, and makes ReadLine return. Only the first call has an effect.
func (c *Conn) End(text string) { c.send(newMessage(text), true) }

// send queues m, which is the last message if last is true, and has it written.
func (c *Conn) send(m *message, last bool) {
	if c.enqueue(m, last) {
		startWriting([]*Conn{c})
	}
}

// enqueue adds m to the queue. It reports whether the caller must hand c to the writers, because no goroutine is
// writing. If too much is pending, it disconnects the peer.
func (c *Conn) enqueue(m *message, last bool) (start bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.ended {
		return false
	}
	if last {
		c.ended = true
		c.net.SetReadDeadline(time.Unix(1, 0)) // ends a Read; Close sets its own deadline later
	}
	if m.snapshot {
		c.queue = slices.DeleteFunc(c.queue, func(old *message) bool { return old.snapshot })
	}
	if c.pending+m.cost > MaxPending {
		c.fail(ErrStalled)
		return false
	}
	c.queue = append(c.queue, m)
	c.pending += m.cost
	start = !c.writing
	c.writing = true
	return start
}

// next notes that n more bytes are written, and returns the bytes to write next. It returns nil when all is written;
// then the caller is no longer in charge of the pending messages.
func (c *Conn) next(n int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += n
	for {
		if c.current != nil {
			if p := c.current.at(c.offset); p != nil {
				return p
			}
			c.pending -= c.current.cost
			c.current, c.offset = nil, 0
		}
		if len(c.queue) == 0 {
			c.queue = nil // frees the memory of a long queue
			c.writing = false
			c.changed.Broadcast()
			return nil
		}
		c.current = c.queue[0]
		c.queue = slices.Delete(c.queue, 0, 1)
	}
}

// writeBlocking writes the pending messages as fast as the peer accepts them. If the peer accepts nothing for
// StallTimeout, counted in steps, it is disconnected. If there is only one step, any timeout disconnects it.
func (c *Conn) writeBlocking() {
	n, idle, unsent := 0, 0, unsentBytes(c.raw)
	for p := c.next(0); p != nil; p = c.next(n) {
		var err error
		c.net.SetWriteDeadline(time.Now().Add(c.pool.StallTimeout / time.Duration(c.pool.steps)))
		n, err = c.net.Write(p[:min(len(p), maxWrite)])
		before := unsent
		unsent = unsentBytes(c.raw)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			c.closeBecause(err)
			return
		}
		// The kernel accepts more only when a third of its buffer is free, so look into the buffer as well.
		if err == nil || c.pool.steps > 1 && (n > 0 || unsent < before) {
			idle = 0
		} else if idle++; idle == c.pool.steps {
			c.closeBecause(ErrStalled)
			return
		}
	}
}

// closeBecause closes the connection and drops all pending output. Only the first error counts.
func (c *Conn) closeBecause(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail(err)
}

// fail is closeBecause for callers that hold mu.
func (c *Conn) fail(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	c.changed.Broadcast()
	if s, ok := c.net.(interface{ SetLinger(sec int) error }); ok && err == ErrStalled {
		s.SetLinger(0) // makes the kernel drop its buffer for the peer, too
	}
	c.net.Close()
}

// Err returns nil while the connection works. Otherwise it returns ErrStalled, net.ErrClosed after Close or CloseNow, a
// network error, or an error that says that End was called.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && c.ended {
		return errEnded
	}
	return c.err
}

// Flush waits until the kernel has accepted everything that was sent, or the connection has failed.
func (c *Conn) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && c.writing {
		c.changed.Wait()
	}
}

// Close waits until End has been called and everything is written, then closes the connection. Closing a TCP connection
// with unread input can destroy output on its way, so Close first closes only the sending side and discards input, at a
// limited rate, until the peer closes its side or linger has passed. On a failed connection it returns immediately.
func (c *Conn) Close() {
	c.mu.Lock()
	for c.err == nil && (c.writing || !c.ended) {
		c.changed.Wait()
	}
	c.mu.Unlock()
	if half, ok := c.net.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		c.net.SetReadDeadline(time.Now().Add(linger))
		// Most peers send nothing now. Only after the first Read, a larger buffer is worth its memory.
		for _, err := c.net.Read(c.buffer[:]); err == nil; _, err = c.net.Read(make([]byte, 4<<10)) {
			time.Sleep(chunkInterval)
		}
	}
	c.CloseNow()
}

// CloseNow closes the connection immediately and drops all pending output.
func (c *Conn) CloseNow() { c.closeBecause(net.ErrClosed) }
