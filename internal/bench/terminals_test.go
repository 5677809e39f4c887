//go:build linux

package bench

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"
	"time"
)

// terminal is one client socket, which never blocks.
type terminal struct {
	fd     int
	got    int    // bytes since the last rest
	before []byte // the last bytes, if a marker was looked for in them in vain
	done   bool   // has got what is waited for
	deaf   bool   // does not read once it has joined
}

const (
	patience = 20 * time.Second // with the server
	window   = 256              // how many terminals are joining at the same time

	// glance is how long bytes may collect between two looks at them: the error of what is
	// measured. To be woken for each terminal's bytes would cost more than all the rest.
	glance = 200 * time.Microsecond
)

// must ends the test or benchmark if there is an error.
func (s *side) must(err error, format string, args ...any) {
	if err != nil {
		s.tb.Helper()
		s.tb.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
}

// join has so many terminals and the speaker join and returns how many did so in a second. If
// stuck, every second one never reads again.
func (s *side) join(count int, stuck bool) float64 {
	s.tb.Helper()
	var err error
	s.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	s.must(err, "epoll_create")
	s.all, s.buf = make([]terminal, 1+count), make([]byte, 256<<10)
	started := time.Now()
	next, done := 0, 0
	s.tb.Cleanup(func() {
		for _, t := range s.all[:next] {
			syscall.Close(t.fd)
		}
		syscall.Close(s.epoll)
	})
	for done < count {
		for ; next <= count && next-done < window; next++ {
			if s.all[next].deaf = stuck && next%2 == 1; !s.all[next].deaf && next > 0 {
				s.readers++
			}
			s.must(errors.Join(s.connect(next), s.all[next].write(s.joins)), "connecting terminal %d", next)
		}
		t, p, err := s.next(time.Until(started.Add(patience)), false)
		s.must(err, "%d of %d terminals joined", done, count)
		if !t.done && t.saw(s.joined, p) {
			t.done = true
			done++
			if t.deaf {
				s.must(syscall.EpollCtl(s.epoll, syscall.EPOLL_CTL_DEL, t.fd, nil), "epoll_ctl")
			}
		}
	}
	return float64(count) / time.Since(started).Seconds()
}

// connect connects terminal i, from one of several loopback addresses, since one has only
// 28,000 ports. A reset at its end leaves none in TIME_WAIT for those who measure next.
func (s *side) connect(i int) (err error) {
	t := &s.all[i]
	if t.fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if t.deaf {
		// Over loopback the kernel would hold megabytes for a terminal that does not
		// read. With the segments of a slow line it holds some ten kilobytes.
		err = errors.Join(syscall.SetsockoptInt(t.fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1),
			syscall.SetsockoptInt(t.fd, syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 536))
	}
	const edgeTriggered = 1 << 31 // syscall.EPOLLET is negative
	event := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP | edgeTriggered, Fd: int32(i)}
	return errors.Join(err,
		syscall.SetsockoptLinger(t.fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1}),
		syscall.Bind(t.fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(2 + i/5000)}}),
		syscall.Connect(t.fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: s.port}), // at once, over loopback
		syscall.SetNonblock(t.fd, true),
		syscall.EpollCtl(s.epoll, syscall.EPOLL_CTL_ADD, t.fd, &event))
}

// write types a line, for which the kernel always has room.
func (t *terminal) write(line string) error {
	_, err := syscall.Write(t.fd, []byte(line))
	return err
}

// saw reports whether the marker has come, at the latest with p. After that it is to be seen again.
func (t *terminal) saw(marker string, p []byte) bool {
	if t.before != nil {
		p = append(t.before, p...)
	}
	found := bytes.Contains(p, []byte(marker))
	if t.before = nil; !found {
		t.before = bytes.Clone(p[max(0, len(p)-len(marker)):])
	}
	return found
}

// errQuiet is the error of next when nothing has come.
var errQuiet = errors.New("nothing more came in time")

// next returns the next terminal that has got something, and what, or only how much. It waits for
// that as long as wait. What the speaker gets is dropped.
func (s *side) next(wait time.Duration, discard bool) (*terminal, []byte, error) {
	for {
		if len(s.waiting) == 0 {
			n, err := syscall.EpollWait(s.epoll, s.events[:], int(max(0, wait.Milliseconds())))
			if err != nil && err != syscall.EINTR {
				return nil, nil, fmt.Errorf("epoll_wait: %w", err)
			} else if n == 0 || wait < 0 {
				return nil, nil, errQuiet
			}
			s.waiting = s.events[:max(0, n)]
			continue
		}
		t := &s.all[s.waiting[0].Fd]
		var n int
		var err error
		if discard {
			n, _, err = syscall.Recvfrom(t.fd, s.buf, syscall.MSG_TRUNC) // the kernel says only how many
		} else {
			n, err = syscall.Read(t.fd, s.buf) // which is cheaper
		}
		if n < len(s.buf) { // edge-triggered: read on until there was less than asked for
			s.waiting = s.waiting[1:]
		}
		switch {
		case err == syscall.EAGAIN || t == &s.all[0]:
		case err != nil:
			return nil, nil, fmt.Errorf("a terminal cannot read: %w", err)
		case n == 0:
			return nil, nil, errors.New("the server closed a terminal")
		default:
			return t, s.buf[:n], nil
		}
	}
}

// rest drops what comes until nothing has come for 30 ms, so that every server has been idle when
// it is to announce, as one with rounds is. It returns how many bytes came.
func (s *side) rest() (stray int) {
	s.tb.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		_, p, err := s.next(30*time.Millisecond, false)
		if err == errQuiet {
			for i := range s.all {
				s.all[i].got = 0
			}
			return stray
		}
		s.must(err, "resting")
		stray += len(p)
	}
	s.tb.Fatalf("the server does not stop sending, after %d bytes", stray)
	return stray
}

// speak has the speaker type a line.
func (s *side) speak(line string) {
	s.tb.Helper()
	s.must(s.all[0].write(line), "the speaker")
}

// allSee waits until every terminal that reads has got the marker or, if size is not 0, so many
// bytes, which are too many to look at. It returns when that was so for the first one and for the last.
func (s *side) allSee(marker string, size int) (first, last time.Time) {
	s.tb.Helper()
	for i := range s.all {
		s.all[i].before, s.all[i].done = nil, false
	}
	pause := syscall.NsecToTimespec(int64(glance))
	for done, end := 0, time.Now().Add(patience); done < s.readers; {
		t, p, err := s.next(time.Until(end), size > 0)
		s.must(err, "%d of %d terminals got %q", done, s.readers, marker)
		t.got += len(p)
		if !t.done && (size > 0 && t.got >= size || size == 0 && t.saw(marker, p)) {
			t.done = true
			done++
			if last = time.Now(); first.IsZero() {
				first = last
			}
		}
		if len(s.waiting) == 0 && done > 0 {
			syscall.Nanosleep(&pause, nil)
		}
	}
	return first, last
}
