//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd || windows)

package linefile

// Two servers must not share a file, but package syscall has file locks only on the systems above. On others, compiling
// fails here, with a name that says why.
var openLocked, syncDirectory = thisSystemHasNoFileLocks, thisSystemHasNoFileLocks
