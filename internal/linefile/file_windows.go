package linefile

import (
	"os"
	"syscall"
)

// openLocked opens or creates name; others may read it meanwhile, not write, move or delete it. It fails with ErrInUse.
func openLocked(name string) (*os.File, error) {
	path, err := syscall.UTF16PtrFromString(name)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	h, err := syscall.CreateFile(path, syscall.GENERIC_READ|syscall.GENERIC_WRITE, syscall.FILE_SHARE_READ, nil,
		syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	const sharingViolation = syscall.Errno(32)
	if err == sharingViolation {
		err = ErrInUse
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(h), name), nil
}

// openFolder returns a folder that needs no syncing: Windows keeps folders by itself.
func openFolder(string) (disk, error) { return folder{}, nil }

// folder is a folder that is durable already.
type folder struct{ disk }

func (folder) Sync() error  { return nil }
func (folder) Close() error { return nil }
