package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Bounds of a CHAP secret, in bytes (RFC 7143 section 9.2.1 wants 96 bits at
// least).
const minSecret, maxSecret = 12, 256

// readSecret reads the file with user's CHAP secret, if there is a user. It
// returns its absolute path and the secret without the line's end. A file that
// others may read is refused: the secret is theirs already.
func readSecret(flag, user, path string) (string, []byte, error) {
	if user == "" {
		return "", nil, nil
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", flag, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", nil, hint(fmt.Errorf("%s: %w", flag, err), "it names the file that holds the secret")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", flag, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", nil, hint(usagef("%s: %s may be read by other users", flag, path), "`chmod 600 %s`", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+3))
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", flag, err)
	}
	b = bytes.TrimRight(b, "\r\n")
	if n := len(b); n < minSecret || n > maxSecret {
		return "", nil, usagef("%s: the secret in %s has %d bytes, want %d to %d", flag, path, n, minSecret, maxSecret)
	}
	return path, b, nil
}
