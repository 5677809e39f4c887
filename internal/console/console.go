// Package console writes to a terminal or a pipe that may stop accepting output, for example after Ctrl-S, and never
// makes the writing goroutines wait for it. It also reports on the console which validators have come and gone.
package console

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
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

// Context returns a context that is canceled by SIGINT (Ctrl-C), SIGTERM, or SIGHUP (the window was closed; on Windows
// that is SIGTERM). Under nohup, SIGHUP is ignored. A second signal ends the process immediately. A closed console does
// not end it.
func Context() context.Context {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}
	if signal.Ignored(syscall.SIGHUP) {
		signals = signals[:2]
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, stop)
	signal.Ignore(syscall.SIGPIPE)
	return ctx
}

// Plural returns a count with its noun, such as "1 token" or "2 tokens". n is any integer or a *big.Int.
func Plural(n any, noun string) string {
	count := fmt.Sprint(n)
	if count != "1" {
		noun += "s"
	}
	return count + " " + noun
}

// Percent returns the share that part has of total, which is above 0, such as "33.3%".
func Percent(part int64, total *big.Int) string {
	share, _ := new(big.Rat).SetFrac(big.NewInt(part), total).Float64()
	return fmt.Sprintf("%.1f%%", 100*share)
}

// Duration returns d in whole seconds, such as "1m30s".
func Duration(d time.Duration) string {
	if d < time.Second {
		return "less than 1s"
	}
	return d.Round(time.Second).String()
}

// Quote returns text in quotes and in ASCII, cut to a number of columns, so that text from strangers can neither hide
// nor do anything on a terminal.
func Quote(text string, columns int) string {
	quoted := strconv.QuoteToASCII(text[:min(len(text), columns)])
	if len(quoted) > columns {
		quoted = quoted[:columns-2] + `…"`
	}
	return quoted
}
