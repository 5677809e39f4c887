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
	"syscall"
	"time"
)

// Reasons for refusing a connection.
var (
	ErrFull        = errors.New("the server is full")                    // all slots are taken
	ErrAddressFull = errors.New("too many connections from one address") // all slots of an address are taken
)

// A Listener is a net.Listener with a deadline for Accept, such as *net.TCPListener.
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
	refusing chan struct{}  // one element for each call of Refuse

	mu     sync.Mutex // guards the fields below, and keeps log messages in order
	all    usage
	from   map[netip.Prefix]usage // only addresses in use; the zero Prefix stands for all exempt addresses
	logged time.Time              // when the log last said that a limit is reached
}

// usage is how much of a limit is used.
type usage struct {
	size   int  // number of connections
	logged bool // whether the log says that the limit is reached
}

// Serve accepts connections from ln until ctx is done, then closes ln. After an error of Accept, it retries in 5 ms,
// then after twice as long each time, up to 1 s. The log says so once, and again when accepting has worked for 1 s.
func (s *Server) Serve(ctx context.Context, ln Listener) {
	s.from, s.refusing = map[netip.Prefix]usage{}, make(chan struct{}, 100)
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	failing := false        // whether the log says that accepting fails
	var delay time.Duration // the last one, or 0 if Accept has worked since
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
			}
			failing = true
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
	if reason == nil {
		s.running.Add(1)
		go func() { // not running.Go, whose frame would cost each connection 2 KiB of stack
			s.Handle(conn, from)
			s.release(from)
			s.running.Done()
		}()
		return
	}
	select {
	case s.refusing <- struct{}{}:
		s.running.Go(func() {
			s.Refuse(conn, reason)
			<-s.refusing
		})
	default:
		conn.Close()
	}
}

// Wait waits until all calls of Handle and Refuse have returned. Serve must have returned before.
func (s *Server) Wait() { s.running.Wait() }

// acquire takes a slot for a connection, or returns why there is none. It then logs that the limit is reached, unless
// the log says so already or has reported any limit within the last second.
func (s *Server) acquire(from netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.from[from]
	if from.IsValid() && s.MaxPerAddress > 0 && u.size >= s.MaxPerAddress {
		if !u.logged && time.Since(s.logged) >= time.Second {
			s.Log.Printf("too many connections from %s (%d); refusing more", name(from), u.size)
			u.logged, s.logged = true, time.Now()
			s.from[from] = u
		}
		return ErrAddressFull
	}
	if s.MaxConns > 0 && s.all.size >= s.MaxConns {
		if !s.all.logged && time.Since(s.logged) >= time.Second {
			for other, o := range s.from {
				if o.size > u.size {
					from, u = other, o
				}
			}
			s.Log.Printf("the server is full: %d connections, up to %d from one address (%s)", s.all.size, u.size, name(from))
			s.all.logged, s.logged = true, time.Now()
		}
		return ErrFull
	}
	s.all.size++
	u.size++
	s.from[from] = u
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
	s.all = usage{size: s.all.size - 1}
	s.from[from] = usage{size: u.size - 1}
	if u.size == 1 {
		delete(s.from, from)
	}
}

// network returns the network address of addr, or the zero Prefix if addr is exempt from MaxPerAddress.
func network(addr net.Addr) netip.Prefix {
	tcp, _ := addr.(*net.TCPAddr)
	ip := tcp.AddrPort().Addr().Unmap() // zero if there is none
	if ip.IsLoopback() {
		return netip.Prefix{}
	}
	from, _ := ip.Prefix(min(64, ip.BitLen())) // an IPv4 address has 32 bits
	return from
}

// name returns the name of a network address for the log.
func name(from netip.Prefix) string {
	if !from.IsValid() {
		return "loopback"
	}
	return strings.TrimSuffix(from.String(), "/32")
}
