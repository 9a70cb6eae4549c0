package hypervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// Images is the folder with what every VM boots from: kernel, initramfs, an empty formatted overlay disk and the
// read-only root images of the templates. deploy/images makes it; nothing here writes to it.
type Images struct {
	Dir       string
	Kernel    string
	Initramfs string
	Overlay   string
	Templates []TemplateImage // sorted by name
}

// TemplateImage is the root image of one system template.
type TemplateImage struct {
	Name   string // e.g. "system/debian:bookworm"
	Path   string // of a raw disk image
	Digest string // "sha256:…" of the image file, as recorded when it was made
}

// LoadImages reads an images folder. An error names what is missing and what makes it.
func LoadImages(dir string) (*Images, error) {
	im := &Images{
		Dir:       dir,
		Kernel:    filepath.Join(dir, "vmlinuz"),
		Initramfs: filepath.Join(dir, "initramfs.img"),
		Overlay:   filepath.Join(dir, "overlay.ext4"),
	}
	for _, f := range []string{im.Kernel, im.Initramfs, im.Overlay} {
		if _, err := os.Stat(f); err != nil {
			return nil, fmt.Errorf("images folder %s is not complete (make setup builds it): %w", dir, err)
		}
	}
	descriptions, err := filepath.Glob(filepath.Join(dir, "templates", "*.json"))
	if err != nil {
		return nil, err
	}
	for _, d := range descriptions {
		t, err := loadTemplate(d)
		if err != nil {
			return nil, err
		}
		im.Templates = append(im.Templates, t)
	}
	if len(im.Templates) == 0 {
		return nil, fmt.Errorf("images folder %s holds no template (make setup builds them)", dir)
	}
	sort.Slice(im.Templates, func(i, j int) bool { return im.Templates[i].Name < im.Templates[j].Name })
	return im, nil
}

func loadTemplate(description string) (TemplateImage, error) {
	raw, err := os.ReadFile(description) // a path in the operator's images folder
	if err != nil {
		return TemplateImage{}, err
	}
	var d struct{ Name, Image, Digest string }
	if err := json.Unmarshal(raw, &d); err != nil {
		return TemplateImage{}, fmt.Errorf("template description %s: %w", description, err)
	}
	if d.Name == "" || d.Image == "" || d.Digest == "" || strings.Contains(d.Image, "/") {
		return TemplateImage{}, fmt.Errorf("template description %s: name, image (a file name) and digest are required",
			description)
	}
	t := TemplateImage{Name: d.Name, Path: filepath.Join(filepath.Dir(description), d.Image), Digest: d.Digest}
	if _, err := os.Stat(t.Path); err != nil {
		return TemplateImage{}, fmt.Errorf("template %s: %w", d.Name, err)
	}
	return t, nil
}

// ByDigest finds the image with a digest: a snapshot's disk is a difference to exactly that image.
func (im *Images) ByDigest(digest string) (TemplateImage, error) {
	for _, t := range im.Templates {
		if t.Digest == digest {
			return t, nil
		}
	}
	return TemplateImage{}, fmt.Errorf("no template image with digest %s in %s", digest, im.Dir)
}

// ErrNoImages says that none of the places where images are looked for has a folder.
var ErrNoImages = errors.New("no images folder found")

// FindImages gives the first folder that exists of: the one named, STILLFRAME_IMAGES, images beside the executable,
// /var/lib/stillframe/images. A folder that was named explicitly must exist.
func FindImages(named string) (string, error) {
	for _, explicit := range []string{named, os.Getenv("STILLFRAME_IMAGES")} {
		if explicit == "" {
			continue
		}
		if _, err := os.Stat(explicit); err != nil {
			return "", fmt.Errorf("images folder: %w", err)
		}
		return filepath.Abs(explicit)
	}
	places := []string{"/var/lib/stillframe/images"}
	if exe, err := os.Executable(); err == nil {
		places = append([]string{filepath.Join(filepath.Dir(exe), "images")}, places...)
	}
	for _, p := range places {
		if st, err := os.Stat(p); err == nil && st.IsDir() {
			return p, nil
		}
	}
	return "", fmt.Errorf("%w: looked in %s (make setup builds them; --images names another place)", ErrNoImages,
		strings.Join(places, " and "))
}
