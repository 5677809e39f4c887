// Package lineconn exchanges lines of text with untrusted peers, over any net.Conn. A peer may send too much, send too
// fast, send endless lines, read nothing, close one side of the connection or vanish.
//
// A [Server] accepts connections. One goroutine per connection reads its input, by calling [Conn.ReadLine]. Output goes
// to a queue, which never blocks, and which a temporary goroutine writes. So an idle connection costs one goroutine and
// a few hundred bytes, and a stalled peer delays no other peer.
//
// A peer that accepts some output every 10 s is slow, but not stalled, and stays connected unless more than MaxPending
// is pending. Before Linux 6.15, the kernel also disconnects a peer whose receive buffer stays almost full for 50 s. On
// other systems, a peer must accept some kilobytes to count as slow (on Windows, 16 KiB every 30 s), and the system
// decides how much input it buffers, and how soon it notices a vanished peer.
package lineconn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// MaxPending is the limit of pending messages in bytes. A peer that exceeds it is disconnected. A message counts as
	// its text plus messageCost, even if peers share the text, because each may be the last that has it.
	MaxPending = 256 << 10

	messageCost  = 128              // bytes, about what a message takes besides its text
	maxWrite     = 16 << 10         // bytes in a blocking write; few, because on Windows it must end within stallTimeout
	stallTimeout = 30 * time.Second // leaves a slow peer, which accepts something every 10 s, time to spare
)

// ErrStalled is the error of a connection whose peer accepted too little of what was sent to it.
var ErrStalled = errors.New("the client did not keep up")
var errEnded = errors.New("the conversation has ended")

// Listen listens on a TCP address, host:port. A peer that vanishes is noticed within two minutes of silence. On Linux,
// it is also noticed within a minute of the first message sent to it, and the kernel's buffers for a peer are bounded.
// Where the kernel lacks a socket option for that, Listen works without it, and logs what is missing.
func Listen(addr string, l *log.Logger) (*net.TCPListener, error) {
	config := net.ListenConfig{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 6},
		Control: func(_, _ string, raw syscall.RawConn) error {
			if missing := setOptions(raw); missing != "" {
				l.Printf("%sthe server works without", missing)
			}
			return nil
		},
	}
	config.SetMultipathTCP(false) // Multipath TCP does not support all of the options
	ln, err := config.Listen(context.Background(), "tcp", addr)
	tcp, _ := ln.(*net.TCPListener) // nil if there is an error
	return tcp, err
}

// A message is sent as a whole. Peers may share a message and its bytes, which never change.
type message struct {
	parts [][]byte
	cost  int // bytes that the message counts toward MaxPending; 0 for a snapshot, which a newer one replaces
}

func (m *message) isSnapshot() bool { return m.cost == 0 }

func newMessage(parts ...[]byte) *message {
	m := &message{parts: parts, cost: messageCost}
	for _, p := range parts {
		m.cost += len(p)
	}
	if m.cost <= maxWrite { // one write sends it, not one for each part
		m.parts = [][]byte{slices.Concat(parts...)}
	}
	return m
}

// Conn is one connection. Any goroutine may call its methods, with two exceptions: ReadLine and Close belong to one
// goroutine, the reader. SetPrompt belongs to the owner of the Group, and must not run while Tell or Show does.
type Conn struct {
	net   net.Conn
	raw   syscall.RawConn // nil if net is not a socket
	steps int             // parts of stallTimeout, after each of which the progress of the peer is checked

	// Owned by the owner of the group.
	prompt string
	due    time.Time // of the next broadcast

	mu      sync.Mutex // guards the fields below; never held while waiting
	changed sync.Cond  // signals that all is written, or that err is set
	ended   bool       // whether End was called
	err     error      // why the connection is closed, or nil
	queue   []*message // pending messages; unless it is nil, one goroutine is in charge of writing them
	offset  int        // of the next byte to write in the first one
	pending int        // cost of queue

	// Owned by the reader.
	buffer   [readBuffer]byte
	unread   []byte    // the rest of the input in buffer
	nextFree time.Time // when the rate limit has forgotten the input so far
	state    state
}

// NewConn returns a connection that uses c and owns it.
func NewConn(c net.Conn) *Conn {
	conn := &Conn{net: c, steps: 30}
	if runtime.GOOS == "windows" {
		conn.steps = 1 // a Write that times out may have written more than it says (golang.org/issue/24727)
	}
	conn.changed.L = &conn.mu
	if s, ok := c.(syscall.Conn); ok {
		conn.raw, _ = s.SyscallConn() // nil if there is an error; then all writes are blocking writes
	}
	if s, ok := c.(*net.TCPConn); ok && runtime.GOOS != "linux" {
		s.SetWriteBuffer(64 << 10) // a large buffer would take minutes to show the progress of a slow peer
	}
	return conn
}

// Tell sends a formatted text to the peer, followed by the prompt. After End, and on a failed connection, Tell and Show
// do nothing.
func (c *Conn) Tell(format string, args ...any) { c.Show(fmt.Appendf(nil, format, args...)) }

// Show sends a text to the peer, followed by the prompt. The bytes of the text must not change afterwards.
func (c *Conn) Show(text []byte) { c.send(newMessage(text, []byte(c.prompt)), false) }

// End sends the last message, which may be empty, and makes ReadLine return. Only the first call has an effect.
func (c *Conn) End(text string) { c.send(newMessage([]byte(text)), true) }

// send sends m, which is the last message if last is true.
func (c *Conn) send(m *message, last bool) {
	if c.enqueue(m, last) {
		go c.write(true)
	}
}

// enqueue adds m to the queue, and reports whether the queue was empty. Then the caller must start write. If too
// much is pending, enqueue disconnects the peer.
func (c *Conn) enqueue(m *message, last bool) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.ended {
		return false
	}
	if last {
		c.ended = true
		c.net.SetReadDeadline(time.Unix(1, 0)) // ends a Read; Close sets its own deadline later
	}
	if m.isSnapshot() && c.queue != nil { // the first message may be written in part
		c.queue = append(c.queue[:1], slices.DeleteFunc(c.queue[1:], (*message).isSnapshot)...)
	}
	if c.pending+m.cost > MaxPending {
		c.fail(ErrStalled)
		return false
	}
	c.queue = append(c.queue, m)
	c.pending += m.cost
	return len(c.queue) == 1
}

// next notes that n more bytes are written, and returns the bytes to write next. It returns nil when all is written;
// then the caller is no longer in charge of the queue.
func (c *Conn) next(n int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += n
	for len(c.queue) > 0 {
		offset := c.offset
		for _, p := range c.queue[0].parts {
			if offset < len(p) {
				return p[offset:]
			}
			offset -= len(p)
		}
		c.pending -= c.queue[0].cost
		c.queue, c.offset = slices.Delete(c.queue, 0, 1), 0
	}
	c.queue = nil // frees the memory of a long queue
	c.changed.Broadcast()
	return nil
}

// write writes the pending messages. If wait is false, another goroutine takes over when the kernel accepts nothing
// immediately. If the peer accepts nothing for stallTimeout, it is disconnected. This time is counted in steps, so that
// a pause of this process counts as one step at most. If there is only one step, any timeout disconnects the peer.
func (c *Conn) write(wait bool) {
	n, idle, unsent := 0, 0, 0
	for p := c.next(0); p != nil; p = c.next(n) {
		if n = writeNow(c.raw, p); n > 0 {
			idle = 0
			continue
		}
		if !wait {
			go c.write(true)
			return
		}
		var err error
		c.net.SetWriteDeadline(time.Now().Add(stallTimeout / time.Duration(c.steps)))
		n, err = c.net.Write(p[:min(len(p), maxWrite)])
		before := unsent
		unsent = unsentBytes(c.raw)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			c.closeBecause(err)
			return
		}
		// The kernel accepts more only when a third of its buffer is free, so look into the buffer as well.
		if err == nil || c.steps > 1 && (n > 0 || unsent < before) {
			idle = 0
		} else if idle++; idle == c.steps {
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
	c.err = cmp.Or(c.err, err)
	c.changed.Broadcast()
	if s, ok := c.net.(interface{ SetLinger(sec int) error }); ok && err == ErrStalled {
		s.SetLinger(0) // makes the kernel drop its buffer for the peer, too
	}
	c.net.Close()
}

// Err returns nil while the connection works. Otherwise it returns ErrStalled, net.ErrClosed after Close, a network
// error, or an error that says that End was called.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && c.ended {
		return errEnded
	}
	return c.err
}

// flush waits until all messages, if last is true even the last one, are written, or the connection has failed.
func (c *Conn) flush(last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && (c.queue != nil || last && !c.ended) {
		c.changed.Wait()
	}
}

// Close waits until End has been called and everything is written, then closes the connection. Closing a TCP connection
// with unread input can destroy output on its way, so Close first closes only the sending side and discards input, at a
// limited rate, until the peer closes its side or linger has passed. On a failed connection it returns immediately.
func (c *Conn) Close() {
	c.flush(true)
	if half, ok := c.net.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		c.net.SetReadDeadline(time.Now().Add(linger))
		// Most peers send nothing now. Only after the first Read, a larger buffer is worth its memory.
		for _, err := c.net.Read(c.buffer[:]); err == nil; _, err = c.net.Read(make([]byte, 4<<10)) {
			time.Sleep(chunkInterval)
		}
	}
	c.closeBecause(net.ErrClosed)
}
