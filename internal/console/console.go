// Package console writes to a terminal or a pipe that may stop taking output, as
// after Ctrl-S, without making those wait who have something to say.
package console

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"
)

// places is how many writes may wait; more are dropped, and counted.
const places = 1000

// Writer hands what is written to a goroutine that writes it on. Each Write is
// written whole or not at all.
type Writer struct {
	mu      sync.Mutex
	waiting chan []byte // nil: closed
	lost    int         // writes since the last that found a place
	done    chan struct{}
}

// New makes a Writer that writes to w.
func New(w io.Writer) *Writer {
	waiting, done := make(chan []byte, places), make(chan struct{})
	go func() {
		defer close(done)
		for p := range waiting {
			w.Write(p) // there is nobody to tell of an error
		}
	}()
	return &Writer{waiting: waiting, done: done}
}

// Write takes p and returns at once. It never fails: what finds no place is
// lost, and the next one that finds a place says how much was.
func (c *Writer) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := bytes.Clone(p)
	if c.lost > 0 {
		text = fmt.Appendf(nil, "(%d messages were lost here: the console did not take them)\n%s", c.lost, p)
	}
	select {
	case c.waiting <- text:
		c.lost = 0
	default:
		c.lost++
	}
	return len(p), nil
}

// Close waits until all is written on, but no longer than limit.
func (c *Writer) Close(limit time.Duration) {
	c.mu.Lock()
	if c.waiting != nil {
		close(c.waiting)
		c.waiting = nil
	}
	c.mu.Unlock()
	select {
	case <-c.done:
	case <-time.After(limit):
	}
}
