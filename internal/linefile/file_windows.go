package linefile

import (
	"os"
	"syscall"
)

// openLocked opens or creates the file name. Until it is closed, others can read it, but not write, move or delete it.
// It fails with ErrInUse if another program has the file open for writing.
func openLocked(name string) (*os.File, error) {
	path, err := syscall.UTF16PtrFromString(name)
	var h syscall.Handle
	if err == nil {
		h, err = syscall.CreateFile(path, syscall.GENERIC_READ|syscall.GENERIC_WRITE, syscall.FILE_SHARE_READ, nil,
			syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	}
	if err == syscall.Errno(32) { // ERROR_SHARING_VIOLATION
		err = ErrInUse
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(h), name), nil
}

// syncDirectory does nothing, because Windows saves changes of directories by itself.
func syncDirectory(string) error { return nil }
