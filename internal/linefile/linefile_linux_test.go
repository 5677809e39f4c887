package linefile

import (
	"errors"
	"os"
	"syscall"
	"testing"
)

// Opening a file does not block, and syncs its directory, even if the name is a link. On Linux, opening a device could
// block, and the directories in /proc cannot be synced, which is not an error.
func TestOpenOnLinux(t *testing.T) {
	d, f := openTest(t, "")
	flags, _, _ := syscall.Syscall(syscall.SYS_FCNTL, d.Fd(), syscall.F_GETFL, 0)
	same(t, "does not block", flags&syscall.O_NONBLOCK != 0, true)
	f.name += ".link"
	same(t, "load reports that its directory was not synced", errors.Is(f.load(), os.ErrNotExist), true)
	same(t, "link", os.Symlink("/proc/self/comm", f.name), nil)
	same(t, "load", f.load(), nil)
}
