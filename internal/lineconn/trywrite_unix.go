//go:build unix

package lineconn

import "syscall"

// tryWriter writes to a socket as much as the kernel takes without waiting. It
// serves one goroutine, and exists so that a write allocates nothing.
type tryWriter struct {
	p   []byte
	n   int
	err error
	fn  func(fd uintptr)
}

func newTryWriter() *tryWriter {
	t := new(tryWriter)
	t.fn = func(fd uintptr) {
		for {
			t.n, t.err = writeNow(fd, t.p[:min(len(t.p), writeSize)])
			if t.err != syscall.EINTR {
				return
			}
		}
	}
	return t
}

// write returns how many bytes of p were written; errWouldBlock means none,
// for now. The caller must be the only one who writes to raw: Control, unlike
// RawConn.Write, does not see to that, and is faster for it.
func (t *tryWriter) write(raw syscall.RawConn, p []byte) (int, error) {
	if raw == nil {
		return 0, errWouldBlock
	}
	t.p = p
	err := raw.Control(t.fn)
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
