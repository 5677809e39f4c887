package lineconn

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Reasons for refusing a connection.
var (
	ErrFull        = errors.New("the server is full")                    // all slots are taken
	ErrAddressFull = errors.New("too many connections from one address") // all slots of an address are taken
)

// Listener is a net.Listener with a deadline for Accept, such as *net.TCPListener.
type Listener interface {
	net.Listener
	SetDeadline(time.Time) error
}

// Server accepts connections. Like net/http, it survives errors of Accept. It limits the number of connections, in all
// and from one network address: an IPv4 address or an IPv6 /64, which usually has one owner.
type Server struct {
	// Handle serves a connection from a network address, and closes it. The address is the zero Prefix if it is exempt
	// from MaxPerAddress: for loopback, and for connections without an IP address.
	Handle func(conn net.Conn, from netip.Prefix)
	// Refuse tells a peer why there is no slot for it, and closes the connection, all within about a second. While 100
	// calls run, further connections are closed without a message, so that refusing never delays accepting.
	Refuse func(conn net.Conn, reason error)

	MaxConns      int         // limit of connections in all; 0 means no limit
	MaxPerAddress int         // limit of connections from one network address; 0 means no limit
	Log           *log.Logger // must not block, because connecting and disconnecting peers would wait

	running  sync.WaitGroup // calls of Handle and Refuse
	refusing atomic.Int32   // calls of Refuse

	mu     sync.Mutex             // guards the fields below, and keeps log messages in order
	all    usage                  // of MaxConns
	from   map[netip.Prefix]usage // of MaxPerAddress; the zero Prefix stands for all exempt addresses
	logged time.Time              // when the log last said that a limit is reached
}

// usage is how much of a limit is used.
type usage struct {
	conns  int
	logged bool // whether the log says that the limit is reached
}

// Serve accepts connections from ln until ctx is done, then closes ln. After an error of Accept, it retries in 5 ms,
// then after twice as long each time, up to 1 s. The log says so once, and again when accepting has worked for 1 s.
func (s *Server) Serve(ctx context.Context, ln Listener) {
	s.from = map[netip.Prefix]usage{}
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	failing, delay := false, time.Duration(0)
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			delay = 0
			s.start(conn)
		case ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			ln.SetDeadline(time.Time{})
			failing, delay = false, 0
			s.Log.Print("accepting connections again")
		default:
			if errors.Is(err, syscall.EMFILE) {
				err = fmt.Errorf("%w; raise the limit (ulimit -n)", err)
			}
			if !failing {
				s.Log.Printf("cannot accept connections: %v; retrying, connected clients are not affected", err)
				failing = true
			}
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			wait, cancel := context.WithTimeout(ctx, delay)
			<-wait.Done()
			cancel()
			// Without a free file, Accept fails even if no peer connects. So reaching the deadline means success.
			ln.SetDeadline(time.Now().Add(time.Second))
		}
	}
}

// start has a connection handled or refused, without waiting.
func (s *Server) start(conn net.Conn) {
	from := network(conn.RemoteAddr())
	reason := s.acquire(from)
	switch {
	case reason == nil:
		s.running.Add(1)
		go func() { // not running.Go, whose frame would cost each connection 2 KiB of stack
			s.Handle(conn, from)
			s.release(from)
			s.running.Done()
		}()
	case s.refusing.Load() < 100:
		s.refusing.Add(1)
		s.running.Go(func() {
			s.Refuse(conn, reason)
			s.refusing.Add(-1)
		})
	default:
		conn.Close()
	}
}

// Wait waits until all calls of Handle and Refuse have returned. Serve must have returned before.
func (s *Server) Wait() { s.running.Wait() }

// acquire takes a slot for a connection, or returns why there is none. It logs that a limit is reached: once until it
// no longer is, and at most once a second for all limits.
func (s *Server) acquire(from netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, canLog := s.from[from], time.Since(s.logged) >= time.Second
	switch {
	case from.IsValid() && s.MaxPerAddress > 0 && u.conns >= s.MaxPerAddress:
		if canLog && !u.logged {
			s.Log.Printf("too many connections from %s (%d); refusing more", name(from), u.conns)
			s.from[from], s.logged = usage{conns: u.conns, logged: true}, time.Now()
		}
		return ErrAddressFull
	case s.MaxConns > 0 && s.all.conns >= s.MaxConns:
		if canLog && !s.all.logged {
			for other, o := range s.from {
				if o.conns > u.conns {
					from, u = other, o
				}
			}
			s.Log.Printf("the server is full: %d connections, up to %d from one address (%s)", s.all.conns, u.conns, name(from))
			s.all.logged, s.logged = true, time.Now()
		}
		return ErrFull
	}
	s.all.conns++
	s.from[from] = usage{conns: u.conns + 1}
	return nil
}

// release frees the slot of a connection. It logs that a limit is no longer reached, if the log says that it is.
func (s *Server) release(from netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all.logged {
		s.Log.Print("the server is no longer full")
	}
	u := s.from[from]
	if u.logged {
		s.Log.Printf("accepting connections from %s again", name(from))
	}
	s.all, s.from[from] = usage{conns: s.all.conns - 1}, usage{conns: u.conns - 1}
	if u.conns == 1 {
		delete(s.from, from)
	}
}

// network returns the network address of addr, or the zero Prefix if addr is exempt from MaxPerAddress.
func network(addr net.Addr) (from netip.Prefix) {
	tcp, _ := addr.(*net.TCPAddr)
	if ip := tcp.AddrPort().Addr().Unmap(); !ip.IsLoopback() {
		from, _ = ip.Prefix(min(64, ip.BitLen())) // an IPv4 address has 32 bits; without an address, from is zero
	}
	return from
}

// name returns the name of a network address for the log.
func name(from netip.Prefix) string {
	if !from.IsValid() {
		return "loopback"
	}
	return strings.TrimSuffix(from.String(), "/32")
}
