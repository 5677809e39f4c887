package linefile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// lines reads all that f holds.
func lines(t *testing.T, f *File) (all []string, tail string) {
	t.Helper()
	rest, err := f.Replay(func(line []byte) error {
		all = append(all, string(line))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, string(rest)
}

func open(t *testing.T, name string) *File {
	t.Helper()
	f, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// What was appended is there when the file is opened again, and it goes on.
func TestAppendAndReplay(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lines")
	var want []string
	for round := range 3 {
		f := open(t, name)
		if got, tail := lines(t, f); !slices.Equal(got, want) || tail != "" {
			t.Fatalf("round %d: %q and tail %q, want %q", round, got, tail, want)
		}
		for i := range 3 {
			line := strings.Repeat(fmt.Sprint(round), 10*i) // the first one is empty
			if err := f.Append([]byte(line)); err != nil {
				t.Fatal(err)
			}
			want = append(want, line)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A file cut at any byte, as by a crash, yields its whole lines and a tail; after Cut, or with the
// next Append, the tail is gone.
func TestTail(t *testing.T) {
	whole := "one\ntwo\nthree\n"
	for cut := range len(whole) + 1 {
		for _, explicit := range []bool{false, true} {
			name := filepath.Join(t.TempDir(), "lines")
			os.WriteFile(name, []byte(whole[:cut]), 0o644)
			f := open(t, name)
			kept := whole[:strings.LastIndex(whole[:cut], "\n")+1]
			got, tail := lines(t, f)
			if strings.Join(append(got, ""), "\n") != kept || tail != whole[len(kept):cut] {
				t.Errorf("cut at %d: %q, tail %q", cut, got, tail)
			}
			if data, _ := os.ReadFile(name); string(data) != whole[:cut] {
				t.Errorf("cut at %d: reading changed the file", cut)
			}
			if explicit {
				if err := f.Cut(); err != nil {
					t.Fatal(err)
				}
				if data, _ := os.ReadFile(name); string(data) != kept {
					t.Errorf("cut at %d: after Cut the file holds %q", cut, data)
				}
			}
			if err := f.Append([]byte("new")); err != nil {
				t.Fatal(err)
			}
			if data, _ := os.ReadFile(name); string(data) != kept+"new\n" {
				t.Errorf("cut at %d: after Append the file holds %q", cut, data)
			}
			f.Close()
		}
	}
}

// Only one process, and one File, has a file open.
func TestLock(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lines")
	f := open(t, name)
	if _, err := Open(name); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), name) {
		t.Errorf("opened twice: %v", err)
	}
	f.Close()
	open(t, name).Close()
}

// What is no file, or cannot be one, is an error that names it.
func TestOpenFails(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{dir, filepath.Join(dir, "none", "lines"), os.DevNull} {
		if f, err := Open(name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, %v", name, f, err)
		}
	}
}

// The file of the empty name takes lines and keeps none.
func TestNowhere(t *testing.T) {
	f := open(t, "")
	for range 2 {
		if got, tail := lines(t, f); got != nil || tail != "" {
			t.Errorf("it holds %q %q", got, tail)
		}
		if err := f.Append([]byte("x")); err != nil {
			t.Error(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// What is not one line is refused, and the file is as before.
func TestNotOneLine(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lines")
	f := open(t, name)
	lines(t, f)
	longest := bytes.Repeat([]byte("x"), MaxLine-1)
	for _, bad := range [][]byte{[]byte("a\nb"), []byte("\n"), append(longest, 'x')} {
		if err := f.Append(bad); err == nil {
			t.Errorf("%d bytes %.10q are taken for a line", len(bad), bad)
		}
	}
	if err := f.Append(longest); err != nil {
		t.Error(err)
	}
	if got, tail := lines(t, f); len(got) != 1 || len(got[0]) != MaxLine-1 || tail != "" {
		t.Errorf("%d lines, tail %q", len(got), tail)
	}
	f.Close()
}

// An error in reading names its line and ends it there; a line without end takes no memory.
func TestReadErrors(t *testing.T) {
	wrong := errors.New("wrong")
	calls := 0
	_, err := Read(strings.NewReader("a\nb\nc\n"), func(line []byte) error {
		if calls++; string(line) == "b" {
			return wrong
		}
		return nil
	})
	if !errors.Is(err, wrong) || err.Error() != "line 2: wrong" || calls != 2 {
		t.Errorf("%v after %d calls", err, calls)
	}
	endless := io.MultiReader(strings.NewReader("a\n"), strings.NewReader(strings.Repeat("x", 2*MaxLine)))
	if _, err := Read(endless, func([]byte) error { return nil }); err == nil || !strings.HasPrefix(err.Error(), "line 2: ") {
		t.Errorf("a line without end: %v", err)
	}
	if _, err := Read(io.MultiReader(strings.NewReader("a\nb"), broken{}), func([]byte) error { return nil }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a disk that fails: %v", err)
	}
}

// broken is a disk that cannot be read.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// failing is a disk in memory on which some calls fail.
type failing struct {
	data   []byte
	room   int // bytes that it holds; what does not fit is not written
	sync   error
	trunc  error
	synced string // what it held at the last sync that worked
}

func (d *failing) ReadAt(p []byte, at int64) (int, error) {
	return bytes.NewReader(d.data).ReadAt(p, at)
}
func (d *failing) Close() error { return nil }

func (d *failing) WriteAt(p []byte, at int64) (int, error) {
	if int(at) > len(d.data) {
		panic("a hole")
	}
	fits := min(len(p), max(0, d.room-int(at)))
	d.data = append(d.data[:at], p[:fits]...)
	if fits < len(p) {
		return fits, errors.New("no space left")
	}
	return fits, nil
}

func (d *failing) Sync() error {
	if d.sync == nil {
		d.synced = string(d.data)
	}
	return d.sync
}

func (d *failing) Truncate(size int64) error {
	if d.trunc == nil {
		d.data = d.data[:size]
	}
	return d.trunc
}

// Whatever fails, at whatever byte, Append says so and the file ends in whole lines, at the latest when
// the next line is there; what it says is kept was synced.
func TestFailingDisk(t *testing.T) {
	oops := errors.New("oops")
	for room := range 10 {
		for _, sync := range []error{nil, oops} {
			for _, trunc := range []error{nil, oops} {
				d := &failing{room: 100}
				f := &File{disk: d}
				if err := f.Append([]byte("one")); err != nil || d.synced != "one\n" {
					t.Fatal(err, d.synced)
				}
				d.room, d.sync, d.trunc = room, sync, trunc
				err := f.Append([]byte("two"))
				if fails := room < 8 || sync != nil; fails != (err != nil) {
					t.Fatalf("room %d, sync %v: error %v", room, sync, err)
				}
				want := "one\n"
				if err == nil {
					want += "two\n"
				}
				if trunc == nil && string(d.data) != want {
					t.Errorf("room %d, sync %v: the file holds %q, want %q", room, sync, d.data, want)
				}
				if err != nil && trunc != nil { // it cannot be mended: nothing is written behind it
					if again := f.Append([]byte("two")); again == nil {
						t.Errorf("room %d: a line was written behind the remains of another", room)
					}
				}
				d.room, d.sync, d.trunc = 100, nil, nil
				if err := f.Append([]byte("three")); err != nil || d.synced != want+"three\n" {
					t.Errorf("room %d, sync %v, truncate %v: then %v, and the file holds %q", room, sync, trunc, err, d.synced)
				}
			}
		}
	}
}

// A file that somebody else moves, replaces, cuts or extends takes no more lines, until it is there again.
func TestChangedByOthers(t *testing.T) {
	for what, change := range map[string]func(name string) error{
		"removed": os.Remove,
		"moved":   func(name string) error { return os.Rename(name, name+".old") },
		"replaced": func(name string) error {
			return errors.Join(os.WriteFile(name+".new", []byte("one\n"), 0o644), os.Rename(name+".new", name))
		},
		"cut":      func(name string) error { return os.Truncate(name, 0) },
		"extended": func(name string) error { return os.WriteFile(name, []byte("one\nmine\n"), 0o644) },
	} {
		name := filepath.Join(t.TempDir(), "lines")
		f := open(t, name)
		lines(t, f)
		if err := f.Append([]byte("one")); err != nil {
			t.Fatal(err)
		}
		if err := change(name); err != nil {
			t.Fatal(err)
		}
		if err := f.Append([]byte("two")); err == nil {
			t.Errorf("%s: a line is said to be kept", what)
		}
		if what == "moved" {
			os.Rename(name+".old", name)
			if err := f.Append([]byte("two")); err != nil {
				t.Error(err)
			}
			if data, _ := os.ReadFile(name); string(data) != "one\ntwo\n" {
				t.Errorf("moved back: it holds %q", data)
			}
		}
		f.Close()
	}
}

// FuzzRead: lines and tail are the file, whatever it holds.
func FuzzRead(f *testing.F) {
	f.Add([]byte("a\n\nb"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var again []byte
		tail, err := Read(bytes.NewReader(data), func(line []byte) error {
			again = append(append(again, line...), '\n')
			return nil
		})
		if err == nil && !bytes.Equal(append(again, tail...), data) {
			t.Errorf("%q was read as %q and %q", data, again, tail)
		}
	})
}
