//go:build unix

package lineconn

import "syscall"

// tryWriter writes to a socket as much as the kernel takes without waiting. It
// serves one goroutine, and exists so that a write allocates nothing.
type tryWriter struct {
	p   []byte
	n   int
	err error
	fn  func(fd uintptr) bool
}

func newTryWriter() *tryWriter {
	t := new(tryWriter)
	t.fn = func(fd uintptr) bool {
		for {
			t.n, t.err = syscall.Write(int(fd), t.p)
			if t.err != syscall.EINTR {
				return true // done, whatever came of it: never wait
			}
		}
	}
	return t
}

// write returns how many bytes of p were written; errWouldBlock means none,
// for now.
func (t *tryWriter) write(raw syscall.RawConn, p []byte) (int, error) {
	if raw == nil {
		return 0, errWouldBlock
	}
	t.p = p
	err := raw.Write(t.fn)
	t.p = nil
	switch {
	case err != nil:
		return 0, err
	case t.err == syscall.EAGAIN:
		return 0, errWouldBlock
	case t.err != nil:
		return 0, t.err
	}
	return t.n, nil
}
