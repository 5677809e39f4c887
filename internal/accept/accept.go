// Package accept is the front of a server: it survives what
// net.Listener.Accept complains of, as net/http does, and limits how many
// connections there are at once.
package accept

import (
	"context"
	"errors"
	"log"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	minDelay = 5 * time.Millisecond
	maxDelay = time.Second

	// maxRefusals bounds the connections beyond Max that are still being told.
	maxRefusals = 1000
)

// A Listener is a net.Listener with a deadline for Accept, such as
// *net.TCPListener.
type Listener interface {
	net.Listener
	SetDeadline(time.Time) error
}

// Server hands each connection to a goroutine of its own.
type Server struct {
	Handle func(net.Conn) // has a conversation; the connection is its to close
	Refuse func(net.Conn) // takes leave of a connection that is one too many; takes a second or so at most
	Max    int            // conversations at once; 0: no limit
	Log    *log.Logger

	handlers sync.WaitGroup
	handling atomic.Int64
}

// Serve accepts connections from ln until ctx is done; then it closes ln. After
// an error, such as too many open files, it tries again in 5 ms, then after twice
// as long each time, up to 1 s. It says so once, and again when 1 s
// has passed without one.
func (s *Server) Serve(ctx context.Context, ln Listener) {
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	refusals := make(chan struct{}, maxRefusals)
	trouble := false        // said, and not yet over
	var delay time.Duration // after the last error; 0: it is past
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			delay = 0
			if s.Max > 0 && s.handling.Load() >= int64(s.Max) {
				// With all places taken, who comes next waits for one: a second or so.
				select {
				case refusals <- struct{}{}:
					s.handlers.Go(func() { s.Refuse(conn); <-refusals })
				case <-ctx.Done():
					conn.Close()
				}
				break
			}
			s.handling.Add(1)
			s.handlers.Add(1)
			go s.handle(conn)
		case ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			ln.SetDeadline(time.Time{})
			trouble, delay = false, 0
			s.Log.Print("accepting terminals again")
		default:
			if !trouble {
				s.Log.Printf("cannot accept terminals: %v; trying again, those connected go on", err)
			}
			trouble = true
			delay = min(max(2*delay, minDelay), maxDelay)
			select {
			case <-time.After(delay):
			case <-ctx.Done():
			}
			// With no error until then the trouble is over, also if nobody comes: without
			// a free file, accept fails even when nobody waits.
			ln.SetDeadline(time.Now().Add(maxDelay))
		}
	}
}

// handle has one conversation. It is no more than one frame on a stack that there
// are thousands of.
func (s *Server) handle(conn net.Conn) {
	defer s.handlers.Done()
	defer s.handling.Add(-1)
	s.Handle(conn)
}

// Wait waits until every connection has been seen to. Serve must have returned.
func (s *Server) Wait() { s.handlers.Wait() }
