// Package linefile stores lines durably in an append-only file.
//
// The file is a sequence of lines, each ended by a newline. Bytes after the last newline are a partial line, as a crash
// leaves it. Append or DropPartial removes it, CompletePartial makes it a line. Each of these changes syncs the file,
// so that a line is on disk before anyone is sent it, and truncates the file to its previous size if it fails. If
// that fails too, what is left is a partial line again, and the next Append removes it before it writes.
//
// Open locks the file, but editors ignore locks. So each change checks, before it writes and after its sync, that the
// file is still as we left it, and fails with ErrChanged if not. If only its time differs, as after touch, its content
// decides, if a Scanner has read all of it. The only edits that go undetected keep the size, and either come within a
// tick of the system's clock (some ms) of our own last change or put the time back.
package linefile

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"proofofstake/internal/console"
)

// MaxLine is the maximum length of a line of a chain file, in bytes without its newline.
const MaxLine = 64 << 10

var (
	// ErrInUse is returned by Open if the file is open already, in this process or another one.
	ErrInUse = errors.New("already in use by a server")
	// ErrChanged is returned by a change if the file has been moved, replaced, deleted or edited meanwhile.
	ErrChanged = errors.New("changed by another program")
)

// File is an open file of lines. It has one owner.
type File struct {
	name     string
	disk     disk         // or nil if lines are not saved
	size     int64        // of the complete lines, in bytes; what follows them is a partial line
	lastInfo os.FileInfo  // the file after our last change, or nil if unknown
	hash     maphash.Hash // of the complete lines; it detects accidents, and is much faster than decoding lines
	isHashed bool         // or else hash is unknown
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

// Open opens and locks the file name, or creates it. It fails if the file is open already (ErrInUse) or not a regular
// file. It reads only the partial line and up to 64 KiB before it. If name is empty, the File accepts lines but does
// not save them.
func Open(name string) (*File, error) {
	if name == "" {
		return &File{}, nil
	}
	name, err := filepath.Abs(name) // for errors
	if err != nil {
		return nil, err
	}
	file, err := openLocked(name)
	if err != nil {
		return nil, err
	}
	f := &File{name: name, disk: file}
	if err = f.load(); err != nil {
		file.Close()
		return nil, err
	}
	return f, nil
}

// load looks at an open file. It syncs the file, because its last writer may have been killed before its own sync, and
// the directory, because a new file could vanish in a crash.
func (f *File) load() error {
	err := f.rememberInfo()
	if err == nil && !f.lastInfo.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", f.name)
	}
	if err != nil {
		return err
	}
	f.size, err = completeLines(f.disk, f.lastInfo.Size())
	return cmp.Or(err, f.disk.Sync(), syncDirectory(f.name))
}

// completeLines returns the size of the complete lines in the first size bytes of r.
func completeLines(r io.ReaderAt, size int64) (int64, error) {
	buf := make([]byte, 64<<10)
	for size > 0 {
		chunk := buf[:min(size, int64(len(buf)))]
		size -= int64(len(chunk))
		if n, err := r.ReadAt(chunk, size); n < len(chunk) {
			return 0, fmt.Errorf("finding the last newline: %w", err)
		}
		if i := bytes.LastIndexByte(chunk, '\n'); i >= 0 {
			return size + int64(i) + 1, nil
		}
	}
	return 0, nil
}

// Scanner returns a Scanner of the complete lines, which must be read to their end.
func (f *File) Scanner(maxLine int) *Scanner {
	f.hash.Reset()
	f.isHashed = true
	return NewScanner(io.TeeReader(io.NewSectionReader(f.disk, 0, f.size), &f.hash), maxLine)
}

// Reader returns a reader of the complete lines and the partial line.
func (f *File) Reader() *io.SectionReader {
	if f.lastInfo == nil {
		return io.NewSectionReader(nil, 0, 0)
	}
	return io.NewSectionReader(f.disk, 0, f.lastInfo.Size())
}

// End returns the last complete line without its newline, or nil if there is none, and the partial line. It reads at
// most 64 KiB before them. A line of more than maxLine bytes is an error.
func End(r *io.SectionReader, maxLine int) (line, partial []byte, err error) {
	complete, err := completeLines(r, r.Size())
	start, startErr := completeLines(r, max(0, complete-1))
	if max(complete-1-start, r.Size()-complete) > int64(maxLine) {
		startErr = fmt.Errorf("longer than %d bytes", maxLine)
	}
	if err = cmp.Or(err, startErr); err != nil || r.Size() == 0 {
		return nil, nil, err
	}
	end := make([]byte, r.Size()-start)
	_, err = r.ReadAt(end, start)
	if complete > 0 {
		line = end[:complete-1-start]
	}
	return line, end[complete-start:], err
}

// Append adds line, which must not contain a newline, in the place of a partial line. When a change returns nil, it is
// on disk. When it returns an error, the complete lines are unchanged.
func (f *File) Append(line []byte) error {
	if f.disk == nil {
		return nil
	}
	if err := f.DropPartial(); err != nil {
		return err
	}
	return f.CompletePartial(line)
}

// CompletePartial turns the partial line into a line. Its argument is the text of it.
func (f *File) CompletePartial(partial []byte) error {
	if err := f.check(); err != nil {
		return err
	}
	line, previousSize := append(bytes.Clone(partial), '\n'), f.lastInfo.Size()
	_, err := f.disk.WriteAt(line, f.size)
	// Look at the file before the sync, which may take long: a change by others meanwhile must not pass for ours.
	if err = errors.Join(err, f.rememberInfo(), f.disk.Sync()); err != nil {
		f.truncate(previousSize)
		return err
	}
	before := *f
	f.hash.Write(line)
	f.size += int64(len(line))
	if err = f.check(); err != nil {
		*f = before // the next change removes the line, if the file has been put back by then
	}
	return err
}

// DropPartial removes the partial line, or what a failed change has left of its line.
func (f *File) DropPartial() error {
	err := f.check()
	if err == nil && f.lastInfo.Size() > f.size {
		err = f.truncate(f.size)
	}
	return err
}

// truncate truncates the file to size. If only the sync fails, the next Append makes up for it with its own.
func (f *File) truncate(size int64) error {
	return cmp.Or(f.disk.Truncate(size), f.rememberInfo(), f.disk.Sync(), f.check())
}

// rememberInfo looks at the file after a change of ours.
func (f *File) rememberInfo() (err error) {
	f.lastInfo, err = f.disk.Stat()
	return err
}

// Close closes the file and releases the lock. Then every change fails with ErrChanged.
func (f *File) Close() error {
	if f.disk == nil {
		return nil
	}
	f.lastInfo = nil // so that the next change looks at the file, and finds it closed
	return f.disk.Close()
}

// check fails with ErrChanged if the file is not as we left it.
func (f *File) check() error {
	info, err := os.Stat(f.name)
	if err == nil && f.lastInfo == nil {
		err = f.rememberInfo()
	}
	var change string
	switch {
	case errors.Is(err, os.ErrNotExist):
		change = "deleted or moved"
	case errors.Is(err, os.ErrClosed):
		change = "closed"
	case err != nil:
		return err
	case !os.SameFile(info, f.lastInfo):
		change = "replaced by another file"
	case info.Size() != f.lastInfo.Size() || info.Size() < f.size:
		change = fmt.Sprintf("its size is now %d bytes", info.Size())
	case info.ModTime().Equal(f.lastInfo.ModTime()) || runtime.GOOS == "windows":
		// On Windows, the lock prevents edits, and the system may record the time of our last change later.
		return nil
	case !f.isHashed:
		change = "its time has changed"
	default:
		var now maphash.Hash
		now.SetSeed(f.hash.Seed())
		if _, err := io.Copy(&now, io.NewSectionReader(f.disk, 0, f.size)); err != nil {
			return err
		}
		if now.Sum64() == f.hash.Sum64() {
			f.lastInfo = info
			return nil
		}
		change = "edited"
	}
	return fmt.Errorf("%s: %w: %s", f.name, ErrChanged, change)
}

// Snapshot is a file as it was when it was opened. The file may be in use, and may grow meanwhile.
type Snapshot struct {
	*io.SectionReader
	io.Closer
}

// openSnapshot opens a file for reading up to its current size. It does not open os.DevNull, which is empty, because a
// container may lack it.
func openSnapshot(name string) (*Snapshot, error) {
	if name == os.DevNull {
		return &Snapshot{io.NewSectionReader(nil, 0, 0), io.NopCloser(nil)}, nil
	}
	file, err := os.Open(name)
	size, seekErr := file.Seek(0, io.SeekEnd)
	return &Snapshot{io.NewSectionReader(file, 0, size), file}, cmp.Or(err, seekErr)
}

// OpenSnapshots opens both files as of one moment: the first does not change while the second is opened.
func OpenSnapshots(first, second string) (a, b *Snapshot, err error) {
	for err == nil {
		before, _ := os.Stat(first)
		a, err = openSnapshot(first)
		b, err2 := openSnapshot(second)
		after, _ := os.Stat(first)
		err = cmp.Or(err, err2)
		if err == nil && (first == os.DevNull || os.SameFile(before, after) && before.Size() == after.Size()) {
			return a, b, nil
		}
		a.Close()
		b.Close()
	}
	return nil, nil, err
}

// Scanner is a [bufio.Scanner] for the complete lines of a file, which counts them. Its memory use is bounded by the
// longest line.
type Scanner struct {
	*bufio.Scanner
	maxLine, number int
}

// NewScanner returns a Scanner that reads from r. A line or partial line of more than maxLine bytes, without its
// newline, is an error.
func NewScanner(r io.Reader, maxLine int) *Scanner {
	s := &Scanner{Scanner: bufio.NewScanner(r), maxLine: maxLine}
	s.Buffer(make([]byte, min(maxLine+1, 64<<10)), maxLine+1)
	s.Split(func(data []byte, _ bool) (advance int, line []byte, err error) {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			return 0, nil, nil // more is needed; at the end, it is a partial line
		}
		s.number++
		return i + 1, data[:i], nil
	})
	return s
}

// Number returns the number of the last line that Scan read, counted from 1.
func (s *Scanner) Number() int { return s.number }

// Err returns the first error, with the number of its line, or nil if there was none.
func (s *Scanner) Err() error {
	err := s.Scanner.Err()
	if err == nil {
		return nil
	}
	if err == bufio.ErrTooLong {
		err = fmt.Errorf("longer than %d bytes", s.maxLine)
	}
	return fmt.Errorf("line %d: %w", s.number+1, err)
}

// Encode returns v in JSON, as a line without its newline. It panics if v has no JSON.
func Encode(v any) []byte {
	line, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return line
}

// Decode decodes a line that Encode returned into v, which must be a pointer. It accepts only canonical JSON, the one
// spelling that Encode returns, so that no change of a line goes unnoticed. Its error quotes all text from the line,
// even in errors of encoding/json.
func Decode(line []byte, v any) error {
	err := json.Unmarshal(line, v)
	canonical, _ := json.Marshal(v)
	switch zeros := len(line) - len(bytes.TrimLeft(line, "\x00")); {
	case err == nil && bytes.Equal(canonical, line):
		return nil
	case bytes.HasSuffix(line, []byte{'\r'}):
		return errors.New("line ends in CR LF; save the file with Unix line ends")
	case bytes.HasPrefix(line, []byte("\ufeff")):
		return errors.New("begins with a byte order mark; save the file without it")
	case len(line) == 0:
		return errors.New("empty line")
	case zeros > 0:
		return fmt.Errorf("begins with %s, as after a power cut", console.Plural(zeros, "zero byte"))
	case err != nil:
		return fmt.Errorf("bad JSON: %s", console.Quote(err.Error(), 100))
	}
	return fmt.Errorf("not canonical JSON: want %s", console.Quote(string(canonical), 200))
}
