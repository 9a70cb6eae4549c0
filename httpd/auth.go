package httpd

import (
	"crypto/sha256"
	"strings"

	"github.com/gofiber/fiber/v2"

	"stillframe/fsm"
)

// headerAPIKey may carry the API key in place of Authorization, which it overrides.
const headerAPIKey = "leap0-authorization"

// authenticate finds the organization of the request's API key. Every way to fail gives the same answer, and the same
// work is done for each: one hash and one lookup. A lookup by hash tells by its timing nothing about a key.
func (s *Server) authenticate(c *call) error {
	state := s.log.State()
	key, found := state.KeyByHash(sha256.Sum256([]byte(presentedKey(c.fc))))
	org, known := state.Org(key.Org)
	if !found || !known || key.RevokedAt != 0 {
		return failf(fsm.KindUnauthorized, "a valid API key is required, in the authorization header")
	}
	c.org, c.key = org, key.ID
	return nil
}

// presentedKey is the secret that the request carries, empty for none or for a header that comes twice.
func presentedKey(fc *fiber.Ctx) string {
	header := &fc.Request().Header
	values := header.PeekAll(headerAPIKey)
	if len(values) == 0 {
		values = header.PeekAll(fiber.HeaderAuthorization)
	}
	if len(values) != 1 {
		return ""
	}
	value := strings.TrimSpace(string(values[0]))
	if scheme, rest, ok := strings.Cut(value, " "); ok && strings.EqualFold(scheme, "bearer") {
		value = strings.TrimSpace(rest)
	}
	return value
}
