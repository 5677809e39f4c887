// Package console writes to a terminal or a pipe that may stop accepting output, for example after Ctrl-S, and never
// makes the writing goroutines wait for it. It also reports on the console which validators have come and gone.
package console

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"
)

// queueSize is how many writes may be pending. Further writes are dropped and counted.
const queueSize = 1000

// Writer passes each Write on to a goroutine that writes it to the console, completely or not at all. Its methods may
// be called from several goroutines.
type Writer struct {
	mu      sync.Mutex
	pending chan []byte   // or nil after Close
	dropped int           // writes since the last one that was queued
	done    chan struct{} // closed when the goroutine has returned
}

// New returns a Writer for w.
func New(w io.Writer) *Writer {
	pending, done := make(chan []byte, queueSize), make(chan struct{})
	go func() {
		defer close(done)
		for p := range pending {
			w.Write(p) // there is no other place to report an error
		}
	}()
	return &Writer{pending: pending, done: done}
}

// Write queues a copy of p. It never blocks or fails: if the queue is full, it drops p. The next write that is queued
// is preceded by a line with the number of dropped ones.
func (c *Writer) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := bytes.Clone(p)
	if c.dropped > 0 {
		text = fmt.Appendf(nil, "(%s dropped here: the console was not keeping up)\n%s", Plural(c.dropped, "message"), p)
	}
	select {
	case c.pending <- text:
		c.dropped = 0
	default:
		c.dropped++
	}
	return len(p), nil
}

// Close waits until all pending writes are done, but no longer than timeout. Later writes are dropped.
func (c *Writer) Close(timeout time.Duration) {
	c.mu.Lock()
	if c.pending != nil {
		close(c.pending)
		c.pending = nil
	}
	c.mu.Unlock()
	select {
	case <-c.done:
	case <-time.After(timeout):
	}
}
