// Package console writes to a terminal or a pipe that may stop accepting output, for example after Ctrl-S, and never
// makes the writing goroutines wait for it. It also reports on the console which validators have come and gone.
package console

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
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

// Close waits for the pending writes, but no longer than timeout. It must be called once. Later writes are dropped.
func (c *Writer) Close(timeout time.Duration) {
	c.mu.Lock()
	close(c.pending)
	c.pending = nil
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

// progressInterval is the time before the first report of a Progress, in which most work is done, and between two.
const progressInterval = time.Second

// Progress shows how far a long task is, in a line that it overwrites and finally removes. It has one owner.
type Progress struct {
	w           io.Writer
	title       string
	done, total int64
	next        time.Time // when to show it next
	shown       int       // bytes of the line, or 0 if there is none
}

// NewProgress returns the Progress of a task of this size, such as the bytes of a file. It is shown on file if that is
// a terminal.
func NewProgress(file *os.File, title string, total int64) *Progress {
	p := &Progress{w: io.Discard, title: title, total: max(total, 1), next: time.Now().Add(progressInterval)}
	if info, err := file.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		p.w = file
	}
	return p
}

// Add records that n more of the task is done, and shows that from time to time.
func (p *Progress) Add(n int) {
	p.done += int64(n)
	if now := time.Now(); !now.Before(p.next) {
		p.next = now.Add(progressInterval)
		p.shown, _ = fmt.Fprintf(p.w, "\r%s: %d%%", p.title, min(100, 100*p.done/p.total))
	}
}

// Done removes the line, with spaces: a console of Windows may not know escape sequences. Nothing must be added
// afterwards.
func (p *Progress) Done() {
	if p.shown > 0 {
		fmt.Fprintf(p.w, "\r%*s\r", p.shown-len("\r"), "")
	}
}
