//go:build unix

package linefile

import (
	"errors"
	"os"
	"syscall"
)

// openLocked opens or creates name and locks it for this process.
func openLocked(name string) (*os.File, error) {
	// Non-blocking, since to open a pipe could wait for ever; it is no matter to a file.
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NONBLOCK, 0o644)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == syscall.EWOULDBLOCK {
		err = ErrInUse
	}
	if err != nil {
		f.Close()
		return nil, &os.PathError{Op: "lock", Path: name, Err: err}
	}
	return f, nil
}

// syncFolder makes durable that a new file is in the folder.
func syncFolder(name string) error {
	folder, err := os.Open(name)
	if err != nil {
		return err
	}
	defer folder.Close()
	err = folder.Sync()
	if errors.Is(err, syscall.EINVAL) {
		return nil // a file system on which folders cannot be synced
	}
	return err
}
