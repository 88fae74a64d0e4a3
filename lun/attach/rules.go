package attach

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// RulesName is what Rules are called where they are installed: after the rules
// that find out what a device is, before those that look at what is on it.
const RulesName = "59-cleave-attach.rules"

// Rules are udev's, for attached devices.
//
//go:embed udev/59-cleave-attach.rules
var Rules []byte

// ErrRules says that Rules are not in force.
var ErrRules = errors.New("udev may have LVM, md, udisks or multipathd take up attached devices")

// ruleDirs are where udev looks, the first of a name winning (udev(7)).
var ruleDirs = []string{"/etc/udev/rules.d", "/run/udev/rules.d", "/usr/local/lib/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d"}

// CheckRules returns where Rules are installed, "" where none are needed since no
// udev runs. ErrRules says that they are not, or others are.
func CheckRules() (string, error) {
	if _, err := os.Stat("/run/udev/control"); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return checkRules(ruleDirs)
}

func checkRules(dirs []string) (string, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, RulesName)
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if !bytes.Equal(b, Rules) {
			return "", fmt.Errorf("%s is not of this release: %w", path, ErrRules)
		}
		return path, nil
	}
	return "", fmt.Errorf("%s is not installed: %w", RulesName, ErrRules)
}
