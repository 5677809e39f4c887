package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
)

// request is an order to the load process, which answers it with one reply. Only
// to "await" there are two: the first when it is ready for the bytes to come.
type request struct {
	Op       string        // join, await or propose
	Deadline time.Duration // for the whole of it

	// Of join.
	Addr   string
	Count  int // terminals
	Answer int // bytes that a terminal gets for its stake
	Window int // terminals that are joining at the same time
	Others string

	// Of await.
	Bytes   int  // that each terminal gets
	Extra   bool // some may get more
	Discard bool // do not look at the bytes: for those that are too many
}

// Which terminals there are beside those that are measured: every second one is another.
const (
	noOthers    = ""
	readOthers  = "read"  // they read, too
	stuckOthers = "stuck" // they never read once they have joined
)

// reply is the answer to a request.
type reply struct {
	Error string `json:",omitempty"`
	Stray int    `json:",omitempty"` // bytes that came unexpectedly since the last order

	// Of join and propose: from the first connect or line to the last answer. Of await:
	// from the first measured terminal that has all its bytes to the last.
	Took time.Duration
}

// load holds all terminals of one server. One thread serves them, with epoll, since
// a goroutine for each of them would cost more than the server that is
// measured. Nothing is allocated while it measures.
type load struct {
	epoll     int
	terminals []terminal
	events    []syscall.EpollEvent
	buf       []byte
	reference []byte // what the first terminal got
}

// terminal is one client socket. In the kernel it is non-blocking.
type terminal struct {
	fd       int
	got      int // bytes since the last order
	matched  int // bytes of a marker, of the last ones that came
	measured bool
	deaf     bool // never reads once it has joined
	staked   bool
	done     bool
}

// runLoad executes requests from its input until that ends.
func runLoad() error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll_create: %w", err)
	}
	l := &load{epoll: epoll, events: make([]syscall.EpollEvent, 512), buf: make([]byte, 256<<10)}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var r request
		if err := in.Decode(&r); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		var answer reply
		var err error
		switch r.Op {
		case "join":
			answer, err = l.join(r)
		case "await":
			answer, err = l.await(r, func(ready reply) error { return out.Encode(ready) })
		case "propose":
			answer, err = l.propose(r)
		default:
			err = fmt.Errorf("%q is no order", r.Op)
		}
		if err != nil {
			answer.Error = err.Error()
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
	}
}

// join connects further terminals and stakes for each. A terminal says nothing until it
// was asked.
func (l *load) join(r request) (reply, error) {
	addr, err := netip.ParseAddrPort(r.Addr)
	if err != nil {
		return reply{}, err
	}
	next, joined := len(l.terminals), len(l.terminals)
	all := joined + r.Count
	l.terminals = append(l.terminals, make([]terminal, r.Count)...)
	started := time.Now()
	for joined < all {
		for ; next < all && next-joined < r.Window; next++ {
			t := &l.terminals[next]
			t.measured = r.Others == noOthers || next%2 == 0
			t.deaf = r.Others == stuckOthers && !t.measured
			if err := l.connect(next, addr); err != nil {
				return reply{}, fmt.Errorf("terminal %d cannot connect: %w", next, err)
			}
		}
		err := l.read(started.Add(r.Deadline), 0, func(t *terminal, p []byte) error {
			t.got += len(p)
			if t.got >= len(greeting) && !t.staked {
				t.staked = true
				if err := t.write(stakeLine); err != nil {
					return err
				}
			}
			if want := len(greeting) + r.Answer; t.got > want {
				return fmt.Errorf("a terminal got %d bytes while it joined, want %d", t.got, want)
			} else if t.got < want {
				return nil
			}
			joined++
			if t.deaf {
				return syscall.EpollCtl(l.epoll, syscall.EPOLL_CTL_DEL, t.fd, nil)
			}
			return nil
		})
		if err != nil {
			return reply{}, fmt.Errorf("%d of %d terminals joined: %w", joined, all, err)
		}
	}
	return reply{Took: time.Since(started)}, nil
}

// connect begins to connect terminal i from one of several loopback addresses,
// since one has only 28,000 ports.
func (l *load) connect(i int, addr netip.AddrPort) error {
	t := &l.terminals[i]
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	t.fd = fd
	const bindAddressNoPort = 24 // IP_BIND_ADDRESS_NO_PORT: connect chooses the port
	if err := errors.Join(
		// A reset at the end leaves no ports in TIME_WAIT for those who measure next.
		syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1}),
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1),
		syscall.SetsockoptInt(fd, syscall.IPPROTO_IP, bindAddressNoPort, 1),
	); err != nil {
		return err
	}
	if t.deaf {
		// Over loopback the kernel would hold megabytes for a terminal that does not
		// read. With the segments of a slow line, it holds some ten kilobytes.
		if err := errors.Join(
			syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1),
			syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 536),
		); err != nil {
			return err
		}
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(2 + i/5000)}}); err != nil {
		return err
	}
	err = syscall.Connect(fd, &syscall.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())})
	if err != nil && err != syscall.EINPROGRESS {
		return err
	}
	const edgeTriggered = 1 << 31 // syscall.EPOLLET is negative
	event := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP | edgeTriggered, Fd: int32(i)}
	return syscall.EpollCtl(l.epoll, syscall.EPOLL_CTL_ADD, fd, &event)
}

// write writes a line, which the kernel always has room for.
func (t *terminal) write(line string) error {
	n, err := syscall.Write(t.fd, []byte(line))
	if err == nil && n < len(line) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("a terminal cannot write: %w", err)
	}
	return nil
}

var errDeadline = errors.New("nothing more came in time")

// read waits until something comes, at most until deadline, and hands
// it to got, terminal by terminal.
func (l *load) read(deadline time.Time, flags int, got func(*terminal, []byte) error) error {
	n, err := syscall.EpollWait(l.epoll, l.events, int(max(0, time.Until(deadline).Milliseconds())))
	switch {
	case err == syscall.EINTR:
		return nil
	case err != nil:
		return fmt.Errorf("epoll_wait: %w", err)
	case n == 0:
		return errDeadline
	}
	for i := range l.events[:n] {
		t := &l.terminals[l.events[i].Fd]
		// Edge-triggered: read on until there was less than asked for.
		for more := true; more; {
			n, err := t.read(l.buf, flags)
			switch {
			case err == syscall.EAGAIN:
				n = 0
			case err == syscall.EINTR:
				continue
			case err != nil:
				return fmt.Errorf("a terminal cannot read: %w", err)
			case n == 0:
				return errors.New("the server closed a terminal")
			}
			more = n == len(l.buf)
			if n > 0 {
				if err := got(t, l.buf[:n]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// read reads what is there, as read(2) does.
func (t *terminal) read(p []byte, flags int) (int, error) {
	if flags == 0 {
		return syscall.Read(t.fd, p)
	}
	n, _, err := syscall.Recvfrom(t.fd, p, flags)
	return n, err
}

// drain drops what comes until nothing has come for 20 ms, and prepares for a
// measurement. It returns how many bytes came.
func (l *load) drain(limit time.Duration) (stray int, err error) {
	for deadline := time.Now().Add(limit); err == nil; {
		if time.Now().After(deadline) {
			return stray, errors.New("the server does not stop to send")
		}
		err = l.read(time.Now().Add(20*time.Millisecond), 0, func(_ *terminal, p []byte) error {
			stray += len(p)
			return nil
		})
	}
	if err != errDeadline {
		return stray, err
	}
	l.reference = l.reference[:0]
	for i := range l.terminals {
		t := &l.terminals[i]
		t.got, t.matched, t.done = 0, 0, false
	}
	return stray, nil
}

// glance is how long await lets bytes collect between two looks at them: the error
// of what it measures. To be woken for each terminal's bytes would cost the writer
// more than the whole of the rest.
const glance = 200 * time.Microsecond

// readers is how many terminals read.
func (l *load) readers() (n int) {
	for i := range l.terminals {
		if !l.terminals[i].deaf {
			n++
		}
	}
	return n
}

// await says that it is ready, then waits until every terminal that reads has got
// r.Bytes bytes, the same ones as the others.
func (l *load) await(r request, ready func(reply) error) (reply, error) {
	var result reply
	stray, err := l.drain(r.Deadline)
	if err != nil {
		return result, err
	}
	if err := ready(reply{Stray: stray}); err != nil {
		return result, err
	}
	flags := 0
	if r.Discard {
		flags = syscall.MSG_TRUNC // the kernel drops the bytes and says how many
	}
	deadline := time.Now().Add(r.Deadline)
	all, complete := l.readers(), 0
	var first, last time.Time
	rest := syscall.NsecToTimespec(int64(glance))
	for complete < all {
		if complete > 0 {
			syscall.Nanosleep(&rest, nil)
		}
		err := l.read(deadline, flags, func(t *terminal, p []byte) error {
			if !r.Discard && !r.Extra {
				if err := l.compare(t.got, p); err != nil {
					return err
				}
			}
			t.got += len(p)
			switch {
			case t.got > r.Bytes && !r.Extra:
				return fmt.Errorf("a terminal got %d bytes, want %d", t.got, r.Bytes)
			case t.got < r.Bytes || t.done:
				return nil
			}
			t.done = true
			complete++
			if t.measured {
				last = time.Now()
				if first.IsZero() {
					first = last
				}
			}
			return nil
		})
		if err != nil {
			return result, fmt.Errorf("%d of %d terminals got their %d bytes: %w", complete, all, r.Bytes, err)
		}
	}
	result.Took = last.Sub(first)
	return result, nil
}

// compare checks p, the bytes from offset on that one terminal got, against
// those of the terminal that was first to get them.
func (l *load) compare(offset int, p []byte) error {
	if offset < len(l.reference) {
		known := min(len(p), len(l.reference)-offset)
		if !bytes.Equal(l.reference[offset:offset+known], p[:known]) {
			return errors.New("two terminals got different bytes")
		}
		offset, p = offset+known, p[known:]
	}
	if offset == len(l.reference) {
		l.reference = append(l.reference, p...)
	}
	return nil
}

// propose has each terminal send one BPM and waits until each has been told that
// its proposal counts.
func (l *load) propose(r request) (reply, error) {
	stray, err := l.drain(r.Deadline)
	if err != nil {
		return reply{}, err
	}
	started := time.Now()
	for i := range l.terminals {
		if err := l.terminals[i].write(proposalLine); err != nil {
			return reply{}, err
		}
	}
	complete := 0
	for complete < len(l.terminals) {
		err := l.read(started.Add(r.Deadline), 0, func(t *terminal, p []byte) error {
			for _, b := range p {
				switch {
				case t.matched == len(proposed):
				case b == proposed[t.matched]:
					if t.matched++; t.matched == len(proposed) {
						complete++
					}
				default: // the marker's first byte, ';', is in no other place
					t.matched = 0
				}
			}
			return nil
		})
		if err != nil {
			return reply{}, fmt.Errorf("%d of %d proposals were taken: %w", complete, len(l.terminals), err)
		}
	}
	return reply{Took: time.Since(started), Stray: stray}, nil
}
