package lineconn

import (
	"context"
	"errors"
	"log"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

var (
	ErrFull        = errors.New("the server is full")                  // all places are taken
	ErrAddressFull = errors.New("too many terminals from its address") // all places of its address are taken
)

// A Listener is a net.Listener with a deadline for Accept, such as *net.TCPListener.
type Listener interface {
	net.Listener
	SetDeadline(time.Time) error
}

// Server accepts connections: it survives what Accept complains of, as net/http does, and limits how many there are at
// once, in all and from one network address. That is an IPv4 address, or the /64 of an IPv6 address: its owner has all of
// that.
type Server struct {
	// Handle has a conversation and closes the connection. It is from a network address; zero: not counted (loopback, no IP).
	Handle func(conn net.Conn, from netip.Prefix)
	// Refuse takes leave of one that is too many (ErrFull or ErrTooMany) and closes it, in a second or so at most.
	Refuse func(conn net.Conn, why error)

	MaxConns      int         // conversations at once; 0: no limit
	MaxPerAddress int         // of one network address, loopback not counted; 0: no limit
	Log           *log.Logger // must not make anyone wait: everybody who comes or leaves would

	running sync.WaitGroup // conversations and refusals

	mu          sync.Mutex // guards what follows, and keeps messages in order
	all         crowd
	from        map[netip.Prefix]crowd // those that have a place; zero: all that are not counted
	fullSaid    time.Time              // when it was last said that the server is full
	tooManySaid time.Time              // when it was last said that there are too many from any address
}

// crowd is conversations that share a limit.
type crowd struct {
	size int
	said bool // that it is at its limit, and not yet that there is room again
}

// leave takes one off c and reports whether it is to be said that there is room: when a tenth of the places is free
// (this one at least), so that one who comes and goes does not fill the console.
func (c *crowd) leave(places int) (over bool) {
	c.size--
	over = c.said && places-c.size >= places/10
	c.said = c.said && !over
	return over
}

// Serve accepts connections from ln until ctx is done; then it closes ln. After an error, such as too many open files, it
// tries again in 5 ms, then after twice as long each time, up to 1 s. It says so once, and again when 1 s has passed
// without one.
func (s *Server) Serve(ctx context.Context, ln Listener) {
	s.from = map[netip.Prefix]crowd{}
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	refusals := make(chan struct{}, 1000) // those going on
	trouble := false                      // said, and not yet over
	var delay time.Duration               // after the last error; 0: it is past
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			delay = 0
			from := network(conn.RemoteAddr())
			switch why := s.take(from); {
			case why == nil:
				s.running.Add(1)
				go func() { // a small frame on a stack that there are thousands of: no defers
					s.Handle(conn, from)
					s.give(from)
					s.running.Done()
				}()
			case why == ErrAddressFull && len(refusals) == cap(refusals):
				conn.Close() // without a word: one address must not make the others wait
			default:
				select { // with all of those taken, who comes next waits for one: a second or so
				case refusals <- struct{}{}:
					s.running.Go(func() { s.Refuse(conn, why); <-refusals })
				case <-ctx.Done():
					conn.Close()
				}
			}
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
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			wait, cancel := context.WithTimeout(ctx, delay)
			<-wait.Done()
			cancel()
			// With no error until then it is over, also if nobody comes: without a free file, accept fails all the same.
			ln.SetDeadline(time.Now().Add(time.Second))
		}
	}
}

// Wait waits until every connection has been seen to. Serve must have returned.
func (s *Server) Wait() { s.running.Wait() }

// take takes a place, or returns why there is none and says so: once, until there is room again, and at most once a second.
func (s *Server) take(from netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.from[from]
	if from.IsValid() && s.MaxPerAddress > 0 && c.size >= s.MaxPerAddress {
		if !c.said && time.Since(s.tooManySaid) >= time.Second {
			s.Log.Printf("too many terminals from %s: %d; further ones are refused", name(from), c.size)
			c.said, s.tooManySaid = true, time.Now()
			s.from[from] = c
		}
		return ErrAddressFull
	}
	if s.MaxConns > 0 && s.all.size >= s.MaxConns {
		if !s.all.said && time.Since(s.fullSaid) >= time.Second {
			for other, o := range s.from {
				if o.size > c.size {
					from, c = other, o
				}
			}
			s.Log.Printf("the server is full: %d terminals, the most of them (%d) from %s", s.all.size, c.size, name(from))
			s.all.said, s.fullSaid = true, time.Now()
		}
		return ErrFull
	}
	s.all.size++
	c.size++
	s.from[from] = c
	return nil
}

// give gives back a place, and says if there is room again.
func (s *Server) give(from netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all.leave(s.MaxConns) {
		s.Log.Print("there is room again")
	}
	c := s.from[from]
	if c.leave(s.MaxPerAddress) {
		s.Log.Printf("terminals from %s are let in again", name(from))
	}
	if s.from[from] = c; c.size == 0 {
		delete(s.from, from)
	}
}

// network returns the network address of addr, zero if it is not counted.
func network(addr net.Addr) netip.Prefix {
	tcp, _ := addr.(*net.TCPAddr)
	ip := tcp.AddrPort().Addr().Unmap() // zero if there is none
	if ip.IsLoopback() {
		return netip.Prefix{}
	}
	from, _ := ip.Prefix(min(64, ip.BitLen())) // an IPv4 address has 32
	return from
}

// name is what the console calls a network address.
func name(from netip.Prefix) string {
	if !from.IsValid() {
		return "loopback"
	}
	return strings.TrimSuffix(from.String(), "/32")
}
