package linefile

import (
	"os"
	"syscall"
)

// openLocked opens or creates name; others may read it meanwhile, not write, move or delete it. It fails with ErrInUse.
func openLocked(name string) (*os.File, error) {
	path, err := syscall.UTF16PtrFromString(name)
	var h syscall.Handle
	if err == nil {
		h, err = syscall.CreateFile(path, syscall.GENERIC_READ|syscall.GENERIC_WRITE, syscall.FILE_SHARE_READ, nil,
			syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	}
	if err == syscall.Errno(32) { // a sharing violation
		err = ErrInUse
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(h), name), nil
}

// syncFolder does nothing: Windows keeps folders by itself.
func syncFolder(string) error { return nil }
