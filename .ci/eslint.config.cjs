// How the page's script is checked: eslint's own recommendations, and what has bitten others.
'use strict';

const js = require('@eslint/js');
const globals = require('globals');

module.exports = [
  js.configs.recommended,
  {
    // the page is a classic script for every browser of the last years
    languageOptions: {ecmaVersion: 2020, sourceType: 'script', globals: globals.browser},
    linterOptions: {reportUnusedDisableDirectives: 'error'},
    rules: {
      'array-callback-return': 'error',
      'block-scoped-var': 'error',
      'consistent-return': 'error',
      'default-case-last': 'error',
      'dot-notation': 'error',
      'eqeqeq': ['error', 'always', {null: 'ignore'}],
      'no-console': 'error',
      'no-constructor-return': 'error',
      'no-eval': 'error',
      'no-implied-eval': 'error',
      'no-new-func': 'error',
      'no-extend-native': 'error',
      'no-implicit-globals': 'error',
      'no-loop-func': 'error',
      'no-promise-executor-return': 'error',
      'no-return-assign': ['error', 'except-parens'],
      'no-script-url': 'error',
      'no-self-compare': 'error',
      'no-sequences': 'error',
      'no-template-curly-in-string': 'error',
      'no-throw-literal': 'error',
      'no-unmodified-loop-condition': 'error',
      'no-unreachable-loop': 'error',
      'no-unused-expressions': 'error',
      'no-use-before-define': ['error', {functions: false, variables: false}],
      'no-unused-vars': ['error', {caughtErrors: 'none'}],
      'no-useless-concat': 'error',
      'no-var': 'error',
      'prefer-const': 'error',
      'radix': 'error',
      'strict': ['error', 'function'],
      // strangers' text reaches the document by textContent alone
      'no-restricted-properties': ['error',
        {property: 'innerHTML'}, {property: 'outerHTML'}, {property: 'insertAdjacentHTML'},
        {object: 'document', property: 'write'}],
    },
  },
];
