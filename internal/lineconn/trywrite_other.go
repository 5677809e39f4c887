//go:build !unix

package lineconn

import "syscall"

// tryWriter cannot write without waiting here, so that each message takes a
// goroutine for as long as it is written.
type tryWriter struct{}

func newTryWriter() *tryWriter { return new(tryWriter) }

func (*tryWriter) write(syscall.RawConn, []byte) (int, error) { return 0, errWouldBlock }
