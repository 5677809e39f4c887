// Package linefile keeps lines durable in a file to which they are only ever added.
//
// The file is a sequence of lines, each ended by a newline, and nothing else. A line counts if its newline is there.
// What stands after the last newline is the tail. How to tell that a line is as it was written is up to the caller.
//
// Append syncs the file, so that a line is on disk before anybody is told of it. A crash before that leaves nothing of
// it, all of it, or a part without newline: the tail. DropPartial removes a tail, as the next Append does; CompletePartial makes it
// a line. If writing or syncing fails, what was written is taken back; if even that fails, the next change does it first:
// nothing is ever written behind the remains of a line. A new file could be gone after a crash, so its folder is synced.
//
// Open locks the file, but an editor does not ask for locks. So each change first looks whether the file is as we left
// it, and else fails with ErrChanged. What this cannot see: an edit that leaves the size and comes within a tick of the
// system's clock (some ms) of ours.
package linefile

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// MaxLine is the longest line of a chain in bytes, without its newline.
const MaxLine = 64 << 10

var (
	// ErrInUse is why Open fails on a file that is open already, here or there.
	ErrInUse = errors.New("it is in use by another process")
	// ErrChanged is why a change fails: the file was moved, replaced, deleted, edited, cut or extended.
	ErrChanged = errors.New("somebody else has changed it")
)

// File is an open file of lines. It has one owner.
type File struct {
	name  string
	disk  disk        // nil: nothing is kept
	whole int64       // length of the whole lines, in bytes
	end   int64       // length of these and the tail; any bytes after it are remains of a change that failed
	left  os.FileInfo // the file after our last change; nil: not known
}

// disk is what a File needs of an [os.File].
type disk interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error
	Stat() (os.FileInfo, error)
}

// Open opens the file name, which it creates if there is none, and locks it. It fails with ErrInUse, or if that is no
// regular file. It reads no more than the tail and 64 KiB. The file of the empty name takes lines and keeps none.
func Open(name string) (*File, error) {
	if name == "" {
		return &File{}, nil
	}
	file, err := openLocked(name)
	if err != nil {
		return nil, err
	}
	return open(name, file)
}

// open makes a File of what Open has opened. If it fails, it closes that.
func open(name string, file disk) (*File, error) {
	f := &File{name: name, disk: file}
	err := f.remember()
	if err == nil && !f.left.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err == nil {
		f.end = f.left.Size()
		f.whole, err = wholeLines(file, f.end)
	}
	if err == nil {
		if err = syncFolder(name); errors.Is(err, syscall.EINVAL) {
			err = nil // folders cannot be synced on this file system
		}
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return f, nil
}

// wholeLines returns the length of the first size bytes of r up to and with their last newline.
func wholeLines(r io.ReaderAt, size int64) (int64, error) {
	buf := make([]byte, 64<<10)
	for size > 0 {
		part := buf[:min(size, int64(len(buf)))]
		size -= int64(len(part))
		if n, err := r.ReadAt(part, size); n < len(part) {
			return 0, fmt.Errorf("looking for the last line: %w", err)
		}
		if bytes.IndexByte(part, '\n') >= 0 { // which is much faster than LastIndexByte
			return size + int64(bytes.LastIndexByte(part, '\n')) + 1, nil
		}
	}
	return 0, nil
}

// Scanner returns a reading of the file from its first line to its tail, as [NewScanner] does.
func (f *File) Scanner(max int) *Scanner {
	return NewScanner(io.NewSectionReader(f.disk, 0, f.end), max)
}

// Append adds line, which must hold no newline. When it returns nil, the line is on disk and a tail is gone.
// Otherwise the whole lines are as before.
func (f *File) Append(line []byte) error {
	if bytes.IndexByte(line, '\n') >= 0 {
		return errors.New("a line cannot hold a newline")
	}
	if f.disk == nil {
		return nil
	}
	return f.write(f.whole, append(bytes.Clone(line), '\n'))
}

// CompletePartial makes the tail that Open found a line. When it returns nil, the line is on disk, or there is no
// such tail. Otherwise the file is as before.
func (f *File) CompletePartial() error {
	if f.end == f.whole {
		return nil
	}
	return f.write(f.end, []byte{'\n'})
}

// DropPartial removes the tail. When it returns nil, that is on disk, or there is no tail.
func (f *File) DropPartial() error {
	if f.PartialSize() == 0 {
		return nil
	}
	return f.prepare(f.whole)
}

// PartialSize returns how many bytes stand after the whole lines: a tail that Open found, or the remains of a failed Append.
func (f *File) PartialSize() int64 {
	if f.left == nil {
		return f.end - f.whole
	}
	return f.left.Size() - f.whole
}

// HasPrefix reports whether the file, as far as it goes, begins with these words. Zeros behind a part of them, which a power
// cut may leave, do not count.
func (f *File) HasPrefix(words string) bool {
	begin := make([]byte, len(words))
	n, _ := f.disk.ReadAt(begin, 0) // less, or an error, leaves zeros
	return strings.HasPrefix(words, strings.TrimRight(string(begin[:n]), "\x00"))
}

// Close closes the file and ends the lock. To close nil is no harm.
func (f *File) Close() error {
	if f == nil || f.disk == nil {
		return nil
	}
	return f.disk.Close()
}

// Reopen goes on with the file of that name that is there now, as [Open] does: for when ErrChanged is no harm. If it fails,
// each change fails with ErrChanged until it is called again.
func (f *File) Reopen() error {
	f.Close()
	again, err := Open(f.name)
	if err != nil {
		f.left = nil // so that a change looks at it, and finds it closed
		return err
	}
	*f = *again
	return nil
}

// prepare cuts the file to end bytes, if it is as we left it. It fails with ErrChanged if not.
func (f *File) prepare(end int64) error {
	there, err := os.Stat(f.name)
	if err == nil && f.left == nil {
		err = f.remember()
	}
	var what string
	switch {
	case errors.Is(err, os.ErrNotExist):
		what = "it is gone"
	case errors.Is(err, os.ErrClosed):
		what = "it could not be opened again"
	case err != nil:
		return err
	case !os.SameFile(there, f.left):
		what = "it is another file now"
	case there.Size() != f.left.Size() || there.Size() < f.end:
		what = fmt.Sprintf("it has %d bytes now", there.Size())
	case !there.ModTime().Equal(f.left.ModTime()) && runtime.GOOS != "windows":
		// On Windows the lock keeps others from writing, and the time of our own change may come late.
		what = "it was edited"
	case there.Size() > end:
		return f.cut(end)
	default:
		return nil
	}
	return fmt.Errorf("%s: %w: %s", f.name, ErrChanged, what)
}

// write makes p durable at the offset at, as the end of the whole lines. If it fails, it takes p back.
func (f *File) write(at int64, p []byte) error {
	if err := f.prepare(at); err != nil {
		return err
	}
	_, err := f.disk.WriteAt(p, f.end)
	// Before the sync, which may take long: what others do meanwhile must not pass for ours.
	err = errors.Join(err, f.remember())
	if err == nil {
		err = f.disk.Sync()
	}
	if err != nil {
		f.cut(f.end) // if that fails, the next change does it
		return err
	}
	f.end += int64(len(p))
	f.whole = f.end
	return nil
}

// cut makes the file end bytes long, durably.
func (f *File) cut(end int64) error {
	if err := f.disk.Truncate(end); err != nil {
		return err
	}
	f.end = end
	return errors.Join(f.remember(), f.disk.Sync())
}

// remember looks at the file after a change of ours.
func (f *File) remember() (err error) {
	f.left, err = f.disk.Stat()
	return err
}

// OpenSnapshot opens a file, which may be in use, to be read up to the size that it has now.
func OpenSnapshot(name string) (io.ReadCloser, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	size, err := file.Seek(0, io.SeekEnd)
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(file, 0, size), file}, err
}

// Scanner is a reading of lines: a [bufio.Scanner] that counts them. Its memory is bounded by the longest line.
// Scan goes on to the next whole line. It returns false when there is none, or after an error.
type Scanner struct {
	*bufio.Scanner
	max    int
	number int
	tail   []byte
}

// NewScanner returns a reading of r. A line or a tail of more than max bytes, without the newline, is an error.
func NewScanner(r io.Reader, max int) *Scanner {
	l := &Scanner{Scanner: bufio.NewScanner(r), max: max}
	l.Buffer(make([]byte, min(max+1, 64<<10)), max+1)
	l.Split(func(data []byte, atEOF bool) (advance int, line []byte, err error) {
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			l.number++
			return i + 1, data[:i], nil
		}
		if atEOF {
			l.tail = bytes.Clone(data)
			return 0, nil, bufio.ErrFinalToken
		}
		return 0, nil, nil
	})
	return l
}

// Number returns the number of the line last scanned, from 1.
func (l *Scanner) Number() int { return l.number }

// Partial returns what stands after the last newline, once Scan has returned false without an error.
func (l *Scanner) Partial() []byte { return l.tail }

// Err returns what ended the reading early, and on which line; nil if nothing did.
func (l *Scanner) Err() error {
	err := l.Scanner.Err()
	if err == bufio.ErrTooLong {
		err = fmt.Errorf("it is longer than %d bytes", l.max)
	}
	if err != nil {
		err = fmt.Errorf("line %d: %w", l.number+1, err)
	}
	return err
}

// Encode is the JSON of v, which has one, as a line.
func Encode(v any) []byte {
	line, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return line
}

// Decode reads what Encode has made of a line into v, which is a pointer. A value has one spelling in a file, that of encoding/json:
// what is written otherwise is an error, so that no byte of a line can be changed unnoticed.
func Decode(line []byte, v any) error {
	err := json.Unmarshal(line, v)
	if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) && strings.HasPrefix(wrong.Value, "number ") {
		return fmt.Errorf("bad JSON: %s: the %.60s is no whole number of at most %d bits, "+
			"which is what this build of the program takes", wrong.Field, wrong.Value, strconv.IntSize)
	}
	if err != nil {
		return fmt.Errorf("bad JSON: %w", err)
	}
	if again, err := json.Marshal(v); err != nil || string(again) != string(line) {
		return fmt.Errorf("bad JSON: it should be %.200s", again)
	}
	return nil
}
