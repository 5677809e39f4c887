//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package linefile

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// openLocked opens or creates the file name. It locks the file until it is closed or the process ends. It fails with
// ErrInUse if the file is locked already.
func openLocked(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == syscall.EWOULDBLOCK {
		err = ErrInUse
	}
	if err != nil {
		f.Close()
		return nil, &os.PathError{Op: "lock", Path: name, Err: err}
	}
	return f, nil
}

// syncDirectory syncs the directory of the file name. If name is a link, that is the directory of the link's target.
func syncDirectory(name string) error {
	name, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	directory, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer directory.Close()
	if err = directory.Sync(); errors.Is(err, syscall.EINVAL) {
		return nil // the file system cannot sync directories
	}
	return err
}
