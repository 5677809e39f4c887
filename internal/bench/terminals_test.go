//go:build linux

package bench

import (
	"bytes"
	"errors"
	"io"
	"syscall"
	"time"
)

// terminal is one client socket.
type terminal struct {
	fd   int
	got  int    // bytes since all began to wait for something
	tail []byte // the last of them, if a marker was looked for in vain
	done bool   // has got what is waited for
	deaf bool   // does not read once it has joined
}

const (
	window = 256 // how many terminals are joining at the same time

	// glance is how long bytes may collect between two looks at them: the error of what is
	// measured. To be woken for each terminal's bytes would cost more than all the rest.
	glance = 200 * time.Microsecond
)

// join has so many terminals join and returns how many did so in a second. If stuck, every
// second one never reads again.
func (s *side) join(count int, stuck bool) float64 {
	var err error
	s.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	s.must(err, "epoll_create")
	s.Cleanup(func() {
		for _, t := range s.all {
			syscall.Close(t.fd)
		}
		syscall.Close(s.epoll)
	})
	started, done := time.Now(), 0
	for done < count {
		for len(s.all) < min(count, done+window) {
			s.must(s.connect(stuck && len(s.all)%2 == 0), "connecting terminal %d", len(s.all))
		}
		t, p := s.next(time.Until(started.Add(patience)), false)
		if t == nil {
			s.Fatalf("%d of %d terminals joined", done, count)
		}
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

// connect connects one more terminal, from one of several loopback addresses, since one has only
// 28,000 ports. A reset at its end leaves none in TIME_WAIT for those who measure next.
func (s *side) connect(deaf bool) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if deaf {
		// Over loopback the kernel would hold megabytes for a terminal that does not
		// read. With the segments of a slow line it holds some ten kilobytes.
		err = errors.Join(syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1),
			syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 536))
	}
	i := len(s.all)
	s.all = append(s.all, terminal{fd: fd, deaf: deaf})
	return errors.Join(err,
		syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1}),
		syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(2 + i/5000)}}),
		syscall.Connect(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: s.port}), // at once, over loopback
		syscall.SetNonblock(fd, true),
		syscall.EpollCtl(s.epoll, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(i)}),
		s.all[i].write(s.joins))
}

// write types a line, for which the kernel always has room.
func (t *terminal) write(line string) error {
	_, err := syscall.Write(t.fd, []byte(line))
	return err
}

// saw reports whether the marker has come with p, or with what came before it and p.
func (t *terminal) saw(marker string, p []byte) bool {
	if t.tail != nil {
		p = append(t.tail, p...)
	}
	if bytes.Contains(p, []byte(marker)) {
		return true
	}
	t.tail = bytes.Clone(p[max(0, len(p)-len(marker)):])
	return false
}

// next returns the next terminal that gets something, and what, or only how much, and no
// terminal if nothing comes for as long as wait.
func (s *side) next(wait time.Duration, discard bool) (t *terminal, p []byte) {
	for len(s.waiting) == 0 {
		n, err := syscall.EpollWait(s.epoll, s.events[:], int(max(0, wait.Milliseconds())))
		if err == syscall.EINTR {
			continue
		}
		s.must(err, "epoll_wait")
		if n == 0 || wait < 0 {
			return nil, nil
		}
		s.waiting = s.events[:n]
	}
	t = &s.all[s.waiting[0].Fd]
	s.waiting = s.waiting[1:]
	var n int
	var err error
	if discard {
		n, _, err = syscall.Recvfrom(t.fd, s.buf[:], syscall.MSG_TRUNC) // the kernel says only how many
	} else {
		n, err = syscall.Read(t.fd, s.buf[:]) // which is cheaper
	}
	if n == 0 {
		err = io.EOF
	}
	s.must(err, "reading what a terminal gets")
	return t, s.buf[:n]
}

// rest drops what comes until nothing has come for 30 ms, so that every server has been idle when
// it is to announce, as one with rounds is. It returns how many bytes came.
func (s *side) rest() (stray int) {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		t, p := s.next(30*time.Millisecond, false)
		if t == nil {
			return stray
		}
		stray += len(p)
	}
	s.Fatalf("the server does not stop sending, after %d bytes", stray)
	return stray
}

// speak has the speaker type a line.
func (s *side) speak(line string) {
	_, err := io.WriteString(s.speaker, line)
	s.must(err, "the speaker")
}

// allSee waits until every terminal that reads has got the marker or, if size is not 0, so many
// bytes, which are too many to look at. It returns the time from the first one to the last, in ms.
func (s *side) allSee(marker string, size int) float64 {
	done := 0
	for i := range s.all {
		t := &s.all[i]
		if t.got, t.tail, t.done = 0, nil, t.deaf; t.deaf {
			done++
		}
	}
	var first, last time.Time
	pause := syscall.NsecToTimespec(int64(glance))
	for end := time.Now().Add(patience); done < len(s.all); {
		if len(s.waiting) == 0 && !first.IsZero() {
			syscall.Nanosleep(&pause, nil)
		}
		t, p := s.next(time.Until(end), size > 0)
		if t == nil {
			s.Fatalf("%d of %d terminals got %q", done, len(s.all), marker)
		}
		t.got += len(p)
		if !t.done && (size > 0 && t.got >= size || size == 0 && t.saw(marker, p)) {
			t.done = true
			done++
			if last = time.Now(); first.IsZero() {
				first = last
			}
		}
	}
	return 1e3 * last.Sub(first).Seconds()
}

// hear has the server make an announcement that all terminals hear, which takes so many ms.
func (s *side) hear() float64 {
	s.rest()
	s.speak(s.announce)
	return s.allSee(s.ends, 0)
}
