// Package linefile keeps lines durable in a file: a log to which lines are
// only ever added.
//
// # Format
//
// The file is a sequence of lines, each ended by a newline (0x0A), and nothing
// else: no header, no length, no checksum. A line counts if its newline is
// there. What a line holds, and how to tell that it is as it was written, is up
// to the caller.
//
// # Crashes
//
// [File.Append] writes the line and its newline with one write at the end of the
// file and syncs the file before it returns, so that a line is on disk before
// anybody is told of it. A crash before that leaves a part of the line, without
// the newline, or all of it: the caller was never told that it is kept, and may
// not have told others. [Read] hands the part over as the tail, [File.Cut] removes it.
//
// If writing or syncing fails, Append takes back what it wrote, so that the file
// ends in whole lines again. If even that fails, the next Append does it first:
// lines are never written behind the remains of another.
//
// The file's folder is synced as well when it is opened, or a new file could be gone
// after a crash.
//
// Append fails as well, and writes nothing, if somebody else has moved, replaced, cut
// or extended the file: what it would write could not be found there.
//
// # One writer
//
// [Open] locks the file for this process; the lock ends with the process, however
// it ends. Whoever only reads needs no lock: Read never sees more than whole
// lines and a tail.
package linefile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// MaxLine is the longest line in bytes, with its newline. A longer one is damage, and is never
// held in memory.
const MaxLine = 64 << 10

// ErrInUse is the error of opening a file that another process has open.
var ErrInUse = errors.New("it is in use by another process")

// disk is what a File needs of an *os.File.
type disk interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error
}

// File is an open file of lines. It has one owner.
type File struct {
	disk  disk
	stat  func() (size int64, err error) // of what stands under the file's name; an error if that is another file
	size  int64                          // of the whole lines, in bytes
	dirty bool                           // something may stand after them
}

// Open opens the file name, which it creates if there is none, and locks it.
// It fails with ErrInUse if another process has it open. The caller must call
// Replay before anything else. The file of the empty name keeps nothing.
func Open(name string) (*File, error) {
	if name == "" {
		return &File{disk: nowhere{}}, nil
	}
	f, err := openLocked(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(name))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	stat := func() (int64, error) {
		there, err := os.Stat(name)
		if err != nil {
			return 0, err
		}
		if !os.SameFile(there, info) {
			return 0, fmt.Errorf("%s is another file now", name)
		}
		return there.Size(), nil
	}
	return &File{disk: f, stat: stat}, nil
}

// Replay calls fn with every whole line, as Read does, and returns the tail.
func (f *File) Replay(fn func(line []byte) error) (tail []byte, err error) {
	f.size, tail, err = read(io.NewSectionReader(f.disk, 0, 1<<63-1), fn)
	f.dirty = len(tail) > 0
	return tail, err
}

// Append adds line, which must hold no newline. When it returns nil, the line is on
// disk. Otherwise the file is as before.
func (f *File) Append(line []byte) error {
	if bytes.IndexByte(line, '\n') >= 0 || len(line) >= MaxLine {
		return fmt.Errorf("not one line of less than %d bytes", MaxLine)
	}
	if err := f.Cut(); err != nil {
		return err
	}
	if f.stat != nil {
		if size, err := f.stat(); err != nil {
			return err
		} else if size != f.size {
			return fmt.Errorf("the file has %d bytes, and not the %d that were kept: somebody else has changed it", size, f.size)
		}
	}
	f.dirty = true
	whole := append(bytes.Clone(line), '\n')
	_, err := f.disk.WriteAt(whole, f.size)
	if err == nil {
		err = f.disk.Sync()
	}
	if err != nil {
		f.Cut() // if that fails, the next Append does it
		return err
	}
	f.size += int64(len(whole))
	f.dirty = false
	return nil
}

// Cut removes what stands after the last whole line, if anything does.
func (f *File) Cut() error {
	if !f.dirty {
		return nil
	}
	if err := f.disk.Truncate(f.size); err != nil {
		return fmt.Errorf("cutting off a line written in part: %w", err)
	}
	f.dirty = false
	return nil
}

// Close ends the lock.
func (f *File) Close() error { return f.disk.Close() }

// Read calls fn with every whole line of r, without its newline; the bytes are
// fn's for the call only. It returns the tail: what stands after the last
// newline. An error of fn or of reading ends it, and names the line, counted
// from 1. Memory does not grow with the file.
func Read(r io.Reader, fn func(line []byte) error) (tail []byte, err error) {
	_, tail, err = read(r, fn)
	return tail, err
}

// read is Read, and returns the length of the whole lines as well.
func read(r io.Reader, fn func(line []byte) error) (size int64, tail []byte, err error) {
	in := bufio.NewReaderSize(r, MaxLine)
	for n := 1; ; n++ {
		line, err := in.ReadSlice('\n')
		switch {
		case err == nil:
			err = fn(line[:len(line)-1])
		case err == io.EOF:
			return size, bytes.Clone(line), nil
		case err == bufio.ErrBufferFull:
			err = fmt.Errorf("it is longer than %d bytes", MaxLine)
		}
		if err != nil {
			return size, nil, fmt.Errorf("line %d: %w", n, err)
		}
		size += int64(len(line))
	}
}

// nowhere is the disk of a file that keeps nothing.
type nowhere struct{}

func (nowhere) ReadAt([]byte, int64) (int, error)      { return 0, io.EOF }
func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (nowhere) Truncate(int64) error                   { return nil }
func (nowhere) Sync() error                            { return nil }
func (nowhere) Close() error                           { return nil }
