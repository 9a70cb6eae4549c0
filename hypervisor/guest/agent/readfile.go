package agent

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math"
	"net/http"
	"os"

	"stillframe/hypervisor/guest"
)

// maxTailMemory bounds the last lines of a file that cannot be read from its end (files of /proc have no size).
const maxTailMemory = 16 << 20

// readFile answers with the raw bytes. When reading fails in the middle, the connection is broken off, so that a short
// answer is never taken for a whole one.
func readFile(w http.ResponseWriter, r *http.Request) {
	var req guest.ReadFileRequest
	if err := decode(w, r, &req); err != nil {
		fail(w, err)
		return
	}
	f, err := openRegular(req.Path)
	if err != nil {
		fail(w, err)
		return
	}
	defer f.Close() //nolint:errcheck // only read
	part, err := selectPart(f, req)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	if _, err := io.Copy(w, part); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// openRegular opens a file to read. Opening a pipe or a device could block for ever or never end.
func openRegular(name string) (*os.File, error) {
	p, err := cleanPath(name)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(p)
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		return nil, guest.Errorf(guest.CodeIsDirectory, "%s is a directory", p)
	}
	if !st.Mode().IsRegular() {
		return nil, guest.Errorf(guest.CodeInvalid, "%s is not a regular file", p)
	}
	return os.Open(p)
}

// selectPart gives the reader of what is asked for.
func selectPart(f *os.File, req guest.ReadFileRequest) (io.Reader, error) {
	bytesAsked := req.Offset != nil || req.Limit != nil
	switch {
	case req.Head != nil && req.Tail != nil:
		return nil, guest.Errorf(guest.CodeInvalid, "head and tail exclude each other")
	case bytesAsked && (req.Head != nil || req.Tail != nil):
		return nil, guest.Errorf(guest.CodeInvalid, "a part by bytes and one by lines exclude each other")
	case req.Head != nil:
		return &headReader{r: bufio.NewReaderSize(f, 64<<10), lines: *req.Head}, nil
	case req.Tail != nil:
		return tailOf(f, *req.Tail)
	}
	if req.Offset != nil {
		if *req.Offset > math.MaxInt64 {
			return nil, guest.Errorf(guest.CodeInvalid, "offset is out of range")
		}
		if _, err := f.Seek(int64(*req.Offset), io.SeekStart); err != nil {
			return nil, err
		}
	}
	if req.Limit != nil {
		return io.LimitReader(f, int64(min(*req.Limit, math.MaxInt64))), nil // bounded right here
	}
	return f, nil
}

// headReader ends after a number of lines. A line may be longer than the buffer.
type headReader struct {
	r     *bufio.Reader
	lines uint64
	rest  []byte
}

func (h *headReader) Read(p []byte) (int, error) {
	for len(h.rest) == 0 {
		if h.lines == 0 {
			return 0, io.EOF
		}
		line, err := h.r.ReadSlice('\n')
		if err == nil {
			h.lines--
		} else if !errors.Is(err, bufio.ErrBufferFull) && len(line) == 0 {
			return 0, err
		}
		h.rest = line
	}
	n := copy(p, h.rest)
	h.rest = h.rest[n:]
	return n, nil
}

// tailOf reads backwards from the end until it has seen enough line ends. A last line without one is a line too.
func tailOf(f *os.File, lines uint64) (io.Reader, error) {
	if lines == 0 {
		return bytes.NewReader(nil), nil
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() == 0 {
		return tailUnsized(f, lines)
	}
	buf := make([]byte, 64<<10)
	last := true
	for end := st.Size(); end > 0; {
		n := min(end, int64(len(buf)))
		chunk := buf[:n]
		if _, err := f.ReadAt(chunk, end-n); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		for i := len(chunk) - 1; i >= 0; i-- {
			if chunk[i] == '\n' && !last {
				if lines--; lines == 0 {
					return io.NewSectionReader(f, end-n+int64(i)+1, math.MaxInt64-st.Size()), nil
				}
			}
			last = false
		}
		end -= n
	}
	return f, nil
}

func tailUnsized(f *os.File, lines uint64) (io.Reader, error) {
	b, err := io.ReadAll(io.LimitReader(f, maxTailMemory+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxTailMemory {
		return nil, guest.Errorf(guest.CodeInvalid, "file tells no size and has more than %d bytes", maxTailMemory)
	}
	end := len(bytes.TrimSuffix(b, []byte("\n")))
	for i := end - 1; i >= 0; i-- {
		if b[i] == '\n' {
			if lines--; lines == 0 {
				return bytes.NewReader(b[i+1:]), nil
			}
		}
	}
	return bytes.NewReader(b), nil
}
