package cli

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Streams is what a command may read and write. It is handed down by value; no
// command touches os.Stdin, os.Stdout or the environment by itself.
type Streams struct {
	In  io.Reader
	Out io.Writer // results
	Err io.Writer // errors, logs and progress

	// OutTerminal and ErrTerminal say that a person sits at the other end.
	OutTerminal, ErrTerminal bool

	// Getenv looks up the environment; nil is an empty one.
	Getenv func(string) string
}

// Standard returns the streams of this process.
func Standard() Streams {
	return Streams{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		OutTerminal: isTerminal(os.Stdout),
		ErrTerminal: isTerminal(os.Stderr),
		Getenv:      os.Getenv,
	}
}

func (s Streams) env(name string) string {
	if s.Getenv == nil {
		return ""
	}
	return s.Getenv(name)
}

// color reports whether results may be coloured (https://no-color.org).
func (s Streams) color() bool {
	return s.OutTerminal && s.env("NO_COLOR") == "" && s.env("TERM") != "dumb"
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
