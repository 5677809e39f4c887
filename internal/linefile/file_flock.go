//go:build unix

package linefile

import (
	"os"
	"path/filepath"
	"syscall"
)

// openLocked opens or creates name and locks it until it is closed or the process ends. It fails with ErrInUse.
func openLocked(name string) (*os.File, error) {
	// Non-blocking, since to open a pipe or a device could wait for ever. It is no matter to a file.
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

// syncFolder syncs the folder of the file name, or of the file that this is a link to.
func syncFolder(name string) error {
	name, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}
